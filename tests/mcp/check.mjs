// Reads an answer of Biplane's server from standard input, and says whether it is as it should be.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const body = JSON.parse(readFileSync(0, "utf8"));
if (process.argv[2] === "servers") {
  const [everything, broken, web] = body.data;
  assert.equal(everything.state, "ready");
  assert.ok(everything.tools.includes("get-sum"));
  assert.equal(broken.state, "failed");
  assert.match(broken.last_error, /cannot be started/);
  assert.equal(web.state, "ready");
  assert.ok(web.tools.includes("web_get-sum"));
  console.log(`two servers work (${everything.protocol}), and one says: ${broken.last_error}`);
} else {
  const { message, finish_reason } = body.choices[0];
  const [run] = message.biplane.tool_trace;
  assert.equal(run.name, "get-sum");
  assert.ok(!message.tool_calls);
  assert.notEqual(finish_reason, "tool_calls");
  console.log(`get-sum was given ${run.arguments} and said: ${run.content}`);
}
