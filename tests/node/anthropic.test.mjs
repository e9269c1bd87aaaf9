import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { base, CASES, control, inCase, PIECES, TEXT, tokens } from "./site.mjs";

const ask = { model: "claude-sonnet-5", max_tokens: 9, messages: [{ role: "user", content: "hi" }] };
const client = new Anthropic({ baseURL: `${base}/anthropic`, apiKey: tokens.good });

beforeEach(() => control("anthropic", "fine"));

test("message", async () => {
  const message = await client.messages.create(ask);
  assert.equal(message.content[0].text, TEXT);
  assert.equal(message._request_id, "req_anthropic");
});

test("message, streamed", async () => {
  const pieces = [];
  const stream = client.messages.stream(ask).on("text", (piece) => {
    pieces.push(piece);
    control("anthropic", "release");
  });
  assert.equal((await stream.finalMessage()).content[0].text, TEXT);
  assert.deepEqual(pieces, PIECES);
});

test("count tokens", async () => {
  const { model, messages } = ask;
  assert.equal((await client.messages.countTokens({ model, messages })).input_tokens, 14);
});

test("a Bearer token becomes the vendor's own header", async () => {
  const bearer = new Anthropic({ baseURL: `${base}/anthropic`, authToken: tokens.good, apiKey: null });
  assert.equal((await bearer.messages.create(ask)).content[0].text, TEXT);
});

const call = (maxRetries) => (server, apiKey) =>
  new Anthropic({ baseURL: `${server}/anthropic`, apiKey, maxRetries }).messages.create(ask);
const classes = { 401: Anthropic.AuthenticationError, 403: Anthropic.PermissionDeniedError, 429: Anthropic.RateLimitError };

for (const [name, row] of Object.entries(CASES)) {
  test(name, async () => {
    const once = await inCase("anthropic", row, call(0));
    assert.ok(once.error instanceof (classes[row.status] ?? Anthropic.InternalServerError), once.error);
    assert.equal(once.error.status, row.status);
    assert.deepEqual(once.statuses, [row.status]);
    assert.match(once.error.requestID, /^req_/);
    const { statuses, waited } = await inCase("anthropic", row, call(1));
    assert.deepEqual(statuses, Array(row.retried ? 2 : 1).fill(row.status));
    assert.equal(waited.length, row.retried ? 1 : 0);
    if (row.status === 429 && row.retried) assert.ok(waited[0] > 10 && waited[0] <= 60, `${waited}`);
  });
}
