import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { base, tokens } from "./site.mjs";

/** Have a session: one event there, one back. Tell all that happened, in its order. */
const converse = (apiKey) =>
  new Promise((resolve) => {
    const happened = [];
    const client = new OpenAI({ baseURL: `${base}/openai/v1`, apiKey });
    const session = new OpenAIRealtimeWS({ model: "gpt-realtime" }, client);
    session.socket.on("open", () => {
      happened.push("open");
      session.send({ type: "response.create" });
    });
    session.on("response.output_text.done", (event) => {
      happened.push(event.text);
      session.close({ code: 4000, reason: "enough" });
    });
    session.on("error", (error) => happened.push(error.message));
    session.socket.on("close", (code, reason) => resolve([...happened, code, reason.toString()]));
  });

test("a session", async () => {
  assert.deepEqual(await converse(tokens.good), ["open", "Grüße", 4000, "enough"]);
});

test("an invalid token is refused before the upgrade", async () => {
  assert.deepEqual(await converse(tokens.broken), ["Unexpected server response: 401", 1006, ""]);
});

test("an engine that the token is not for is refused before the upgrade", async () => {
  assert.deepEqual(await converse(tokens.other), ["Unexpected server response: 403", 1006, ""]);
});
