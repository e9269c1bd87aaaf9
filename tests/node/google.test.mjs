import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { ApiError, GoogleGenAI } from "@google/genai";
import { base, CASES, control, inCase, PIECES, TEXT, tokens } from "./site.mjs";

const model = "gemini-2.5-flash";
const connect = (server, apiKey) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl: `${server}/gemini` } });
const client = connect(base, tokens.good);

beforeEach(() => control("gemini", "fine"));

test("generateContent", async () => {
  assert.equal((await client.models.generateContent({ model, contents: "hi" })).text, TEXT);
});

test("generateContentStream", async () => {
  const pieces = [];
  for await (const chunk of await client.models.generateContentStream({ model, contents: "hi" })) {
    await control("gemini", "release");
    if (chunk.text) pieces.push(chunk.text);
  }
  assert.deepEqual(pieces, PIECES);
});

test("embedContent and countTokens", async () => {
  const { embeddings } = await client.models.embedContent({ model: "gemini-embedding-001", contents: "hi" });
  assert.deepEqual(embeddings[0].values, [0.25, -0.5, 1]);
  assert.equal((await client.models.countTokens({ model, contents: "hi" })).totalTokens, 4);
});

for (const [name, row] of Object.entries(CASES)) {
  test(name, async () => {
    const { error, statuses } = await inCase("gemini", row, (server, apiKey) =>
      connect(server, apiKey).models.generateContent({ model, contents: "hi" }),
    );
    assert.ok(error instanceof ApiError, error);
    assert.equal(error.status, row.status);
    assert.deepEqual(statuses, [row.status]); // it retries only where its retryOptions say so
  });
}
