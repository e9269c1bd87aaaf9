import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import OpenAI, { toFile } from "openai";
import { base, CASES, control, inCase, PIECES, TEXT, tokens } from "./site.mjs";

const messages = [{ role: "user", content: "hi" }];
const client = new OpenAI({ baseURL: `${base}/openai/v1`, apiKey: tokens.good });
const AUDIO = new Uint8Array(2048).map((_, index) => index % 256);

beforeEach(() => control("openai", "fine"));

test("chat completion", async () => {
  const completion = await client.chat.completions.create({ model: "gpt-4o", messages });
  assert.equal(completion.choices[0].message.content, TEXT);
  assert.equal(completion._request_id, "req_openai");
});

test("chat completion, streamed", async () => {
  const pieces = [];
  for await (const chunk of await client.chat.completions.create({ model: "gpt-4o", messages, stream: true })) {
    await control("openai", "release");
    if (chunk.choices[0].delta.content) pieces.push(chunk.choices[0].delta.content);
  }
  assert.deepEqual(pieces, PIECES);
});

test("response", async () => {
  assert.equal((await client.responses.create({ model: "gpt-4o", input: "hi" })).output_text, TEXT);
});

test("response, streamed", async () => {
  const pieces = [];
  for await (const event of await client.responses.create({ model: "gpt-4o", input: "hi", stream: true })) {
    await control("openai", "release");
    if (event.type === "response.output_text.delta") pieces.push(event.delta);
  }
  assert.deepEqual(pieces, PIECES);
});

test("embeddings, images, models", async () => {
  const embeddings = await client.embeddings.create({ model: "text-embedding-3-small", input: "hi" });
  assert.deepEqual(embeddings.data[0].embedding, [0.25, -0.5, 1]);
  assert.match((await client.images.generate({ model: "gpt-image-1", prompt: "a cat" })).data[0].b64_json, /^iVBORw0KGgo/);
  assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["gpt-4o"]);
});

test("bytes up and down", async () => {
  const file = await toFile(AUDIO, "a.mp3");
  assert.equal((await client.audio.transcriptions.create({ model: "whisper-1", file })).text, TEXT);
  const speech = await client.audio.speech.create({ model: "tts-1", voice: "alloy", input: "hi" });
  assert.equal((await speech.arrayBuffer()).byteLength, 2052);
  const lines = await toFile(new TextEncoder().encode("{}\n"), "lines.jsonl");
  assert.equal((await client.files.create({ file: lines, purpose: "batch" })).id, "file-abc123");
});

const call = (maxRetries) => (server, apiKey) =>
  new OpenAI({ baseURL: `${server}/openai/v1`, apiKey, maxRetries }).chat.completions.create({ model: "gpt-4o", messages });
const classes = { 401: OpenAI.AuthenticationError, 403: OpenAI.PermissionDeniedError, 429: OpenAI.RateLimitError };

for (const [name, row] of Object.entries(CASES)) {
  test(name, async () => {
    const once = await inCase("openai", row, call(0));
    assert.ok(once.error instanceof (classes[row.status] ?? OpenAI.InternalServerError), once.error);
    assert.equal(once.error.status, row.status);
    assert.deepEqual(once.statuses, [row.status]);
    assert.match(once.error.requestID, /^req_/);
    const { statuses, waited } = await inCase("openai", row, call(1));
    assert.deepEqual(statuses, Array(row.retried ? 2 : 1).fill(row.status));
    assert.equal(waited.length, row.retried ? 1 : 0);
    if (row.status === 429 && row.retried) assert.ok(waited[0] > 10 && waited[0] <= 60, `${waited}`);
  });
}
