// What Node's clients ask for; `run.sh` starts the server and says where it is.
import { z } from "zod";

export const URL = process.env.BIPLANE_URL;
export const KEY = process.env.BIPLANE_KEY;
export const MODEL = process.env.BIPLANE_MODEL_NAME;

// Bounded: a small model may well write digits without end.
export const City = z.object({ name: z.enum(["Paris", "Oslo"]), population: z.number().int().min(0).max(30000000) });

export const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string", enum: ["Paris", "Oslo"] } }, required: ["city"], additionalProperties: false },
  },
};
