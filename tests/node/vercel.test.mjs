import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, embed, generateText, streamText } from "ai";
import { base, CASES, control, inCase, PIECES, TEXT, tokens } from "./site.mjs";

const openai = (server, apiKey) => createOpenAI({ baseURL: `${server}/openai/v1`, apiKey });
const anthropic = (server, apiKey) => createAnthropic({ baseURL: `${server}/anthropic/v1`, apiKey });
const models = {
  "OpenAI, responses": ["openai", (server, apiKey) => openai(server, apiKey)("gpt-4o")],
  "OpenAI, chat completions": ["openai", (server, apiKey) => openai(server, apiKey).chat("gpt-4o")],
  Anthropic: ["anthropic", (server, apiKey) => anthropic(server, apiKey)("claude-sonnet-5")],
};

beforeEach(() => Promise.all([control("openai", "fine"), control("anthropic", "fine")]));

for (const [name, [vendor, model]] of Object.entries(models)) {
  test(`${name}: generateText`, async () => {
    assert.equal((await generateText({ model: model(base, tokens.good), prompt: "hi" })).text, TEXT);
  });

  test(`${name}: streamText`, async () => {
    const pieces = [];
    for await (const piece of streamText({ model: model(base, tokens.good), prompt: "hi" }).textStream) {
      await control(vendor, "release");
      if (piece) pieces.push(piece);
    }
    assert.deepEqual(pieces, PIECES);
  });

  for (const [caseName, row] of Object.entries(CASES)) {
    test(`${name}: ${caseName}`, async () => {
      const { error, statuses } = await inCase(vendor, row, (server, apiKey) =>
        generateText({ model: model(server, apiKey), prompt: "hi", maxRetries: 0 }),
      );
      assert.ok(APICallError.isInstance(error), error);
      assert.equal(error.statusCode, row.status);
      assert.deepEqual(statuses, [row.status]);
      assert.ok(error.data.error.message, "the message was parsed");
    });
  }
}

test("embed", async () => {
  const model = openai(base, tokens.good).embedding("text-embedding-3-small");
  assert.deepEqual((await embed({ model, value: "hi" })).embedding, [0.25, -0.5, 1]);
});

test("its own retry waits as it is told", async () => {
  const { statuses, waited } = await inCase("openai", CASES["429 of a minute's window"], (server, apiKey) =>
    generateText({ model: openai(server, apiKey)("gpt-4o"), prompt: "hi", maxRetries: 1 }),
  );
  assert.deepEqual(statuses, [429, 429]);
  assert.ok(waited.length === 1 && waited[0] <= 60, `${waited}`);
});

const attempts = { "401 invalid token": 1, "403 service not allowed": 1, "429 of a day's window": 2, "502 credential rejected": 2 };

for (const [name, count] of Object.entries(attempts)) {
  test(`${name}: it looks at the status, not at x-should-retry`, async () => {
    const { statuses, waited } = await inCase("openai", CASES[name], (server, apiKey) =>
      generateText({ model: openai(server, apiKey)("gpt-4o"), prompt: "hi", maxRetries: 1 }),
    );
    assert.deepEqual(statuses, Array(count).fill(CASES[name].status));
    assert.ok(waited.every((seconds) => seconds < 60), `${waited}`);
  });
}
