// Node's `openai`.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { City, KEY, MODEL, URL, WEATHER } from "./common.js";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, maxRetries: 0, timeout: 120000 });
const messages = [{ role: "user", content: "Why is the sky blue? Answer in one sentence." }];
const chat = (more) => client.chat.completions.create({ model: MODEL, messages, max_tokens: 32, temperature: 0, ...more });

test("chat, streamed and whole", async () => {
  const whole = await chat();
  assert.ok(whole.choices[0].message.content.trim());
  let text = "", usage;
  for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  const runner = client.chat.completions.stream({ model: MODEL, messages, max_tokens: 32, temperature: 0 });
  assert.equal(await runner.finalContent(), text);
});

test("stop, n and logprobs", async () => {
  const whole = (await chat()).choices[0].message.content;
  const word = whole.split(/\s+/)[3];
  const cut = (await chat({ stop: word })).choices[0];
  assert.equal(cut.message.content, whole.slice(0, whole.indexOf(word)));
  assert.equal(cut.finish_reason, "stop");
  const two = await chat({ n: 2, max_tokens: 3, logprobs: true, top_logprobs: 2 });
  assert.equal(two.choices.length, 2);
  assert.equal(two.choices[1].logprobs.content[0].top_logprobs.length, 2);
});

test("tools", async () => {
  const more = { tools: [WEATHER], tool_choice: "required", parallel_tool_calls: false, max_tokens: 100 };
  const { message, finish_reason } = (await chat(more)).choices[0];
  assert.equal(finish_reason, "tool_calls");
  const call = message.tool_calls[0];
  assert.equal(call.function.name, "get_weather");
  assert.ok(["Paris", "Oslo"].includes(JSON.parse(call.function.arguments).city));
  const runner = client.chat.completions.stream({ model: MODEL, messages, temperature: 0, ...more });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  const after = [...messages, message, { role: "tool", tool_call_id: call.id, content: "Sunny." }];
  assert.ok((await chat({ messages: after, tools: [WEATHER], tool_choice: "none" })).choices[0].message.content);
});

test("structured output", async () => {
  const response_format = zodResponseFormat(City, "city");
  const answer = await client.chat.completions.parse({ model: MODEL, messages: [{ role: "user", content: "Describe Paris as JSON." }], response_format, max_tokens: 200, temperature: 0 });
  z.parse(City, answer.choices[0].message.parsed);
});

test("embeddings", async () => {
  const { data } = await client.embeddings.create({ model: MODEL, input: ["a cat", "a dog"] });
  const floats = await client.embeddings.create({ model: MODEL, input: "a cat", encoding_format: "float" });
  assert.equal(data.length, 2);
  // The client asks for base64 unless told otherwise; both forms say the same.
  data[0].embedding.forEach((value, i) => assert.ok(Math.abs(value - floats.data[0].embedding[i]) < 1e-3));
});

test("responses", async () => {
  const more = { model: MODEL, input: "Say hello.", max_output_tokens: 16, temperature: 0 };
  const whole = await client.responses.create(more);
  assert.ok(whole.output_text.trim());
  let text = "";
  for await (const event of await client.responses.create({ ...more, stream: true })) if (event.type === "response.output_text.delta") text += event.delta;
  assert.equal(text, whole.output_text);
  const tools = [{ type: "function", ...WEATHER.function }];
  const called = await client.responses.create({ ...more, max_output_tokens: 100, tools, tool_choice: "required", parallel_tool_calls: false });
  assert.equal(called.output[0].type, "function_call");
});

test("completions", async () => {
  const ask = (more) => client.completions.create({ model: MODEL, prompt: "The sky is", max_tokens: 8, temperature: 0, ...more });
  const whole = (await ask()).choices[0].text;
  let text = "";
  for await (const chunk of await ask({ stream: true })) text += chunk.choices[0].text;
  assert.equal(text, whole);
});

test("errors", async () => {
  await assert.rejects(chat({ model: "no-such-model" }), (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
  await assert.rejects(chat({ stop: 5 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "stop" && error.type === "invalid_request_error");
  const stranger = client.withOptions({ apiKey: "wrong" });
  await assert.rejects(stranger.models.list(), (error) => error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key");
});
