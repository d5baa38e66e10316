// The AI SDK with its provider for OpenAI-compatible servers.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { City, KEY, MODEL, URL } from "./common.js";

const make = (apiKey) => createOpenAICompatible({ name: "biplane", baseURL: `${URL}/v1`, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const provider = make(KEY);
const model = provider.chatModel(MODEL);
const ask = { model, prompt: "Why is the sky blue? Answer in one sentence.", maxOutputTokens: 32, temperature: 0, maxRetries: 0 };

test("text, streamed and whole", async () => {
  const whole = await generateText(ask);
  assert.ok(whole.text.trim());
  const stream = streamText(ask);
  let text = "";
  for await (const part of stream.textStream) text += part;
  assert.equal(text, whole.text);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  assert.equal(await stream.finishReason, whole.finishReason);
});

test("stop sequences", async () => {
  const whole = (await generateText(ask)).text;
  const word = whole.split(/\s+/)[3];
  const cut = await generateText({ ...ask, stopSequences: [word] });
  assert.equal(cut.text, whole.slice(0, whole.indexOf(word)));
});

test("tools", async () => {
  const seen = [];
  const weather = tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.enum(["Paris", "Oslo"]) }),
    execute: async ({ city }) => (seen.push(city), `Sunny in ${city}.`),
  });
  // The first step must call; the second answers with what the tool gave.
  const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
  const more = { ...ask, maxOutputTokens: 150, tools: { weather }, stopWhen: stepCountIs(2), prepareStep };
  const result = await generateText(more);
  assert.equal(result.steps.length, 2);
  assert.ok(seen.length >= 1 && ["Paris", "Oslo"].includes(seen[0]));
  assert.ok(result.text.trim());
  const calls = await streamText({ ...more, stopWhen: stepCountIs(1) }).toolCalls;
  assert.equal(calls[0].toolName, "weather");
});

test("structured output", async () => {
  const more = { ...ask, prompt: "Describe Paris as JSON.", maxOutputTokens: 200, output: Output.object({ schema: City }) };
  City.parse((await generateText(more)).output);
  const stream = streamText(more);
  let parts = 0;
  for await (const _ of stream.partialOutputStream) parts++;
  assert.ok(parts > 1);
  City.parse(await stream.output);
});

test("embeddings", async () => {
  const { embeddings } = await embedMany({ model: provider.embeddingModel(MODEL), values: ["a cat", "a dog"] });
  assert.equal(embeddings.length, 2);
  assert.equal(embeddings[0].length, embeddings[1].length);
});

test("completions", async () => {
  const { text } = await generateText({ ...ask, model: provider.completionModel(MODEL), prompt: "The sky is" });
  assert.ok(text.trim());
});

test("errors", async () => {
  const status = (code, text) => (error) => error.statusCode === code && error.message.includes(text);
  await assert.rejects(generateText({ ...ask, model: make("wrong").chatModel(MODEL) }), status(401, "API key"));
  await assert.rejects(generateText({ ...ask, model: provider.chatModel("no-such-model") }), status(404, "no-such-model"));
  await assert.rejects(generateText({ ...ask, temperature: -1 }), status(400, "temperature"));
});
