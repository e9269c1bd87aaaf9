// The server under test, as the Python test that runs these files describes it.
const site = JSON.parse(process.env.SITE);

export const { base, withoutStorage, tokens } = site;
export const TEXT = "Grüße vom Modell";
export const PIECES = ["Grüße", " vom", " Modell"];

const realFetch = globalThis.fetch;
const realTimeout = globalThis.setTimeout;

/** Tell a vendor's upstream what to do: `release` its streams, or be `silent`, `garbage`, `rejected` or `fine`. */
export async function control(vendor, word) {
  await realFetch(`${site.upstreams[vendor]}/control/${word}`);
}

/** Run `call`, and tell the statuses that were answered, the seconds that the SDK waited, and what came out. */
export async function watch(call) {
  const statuses = [];
  const waited = [];
  globalThis.fetch = async (...request) => {
    const response = await realFetch(...request);
    statuses.push(response.status);
    return response;
  };
  // A wait before a retry ends at once. Longer timers are the SDK's limits on a request; others are Node's own.
  globalThis.setTimeout = (callback, milliseconds = 0, ...rest) => {
    const bySdk = new Error().stack.split("\n")[2].includes("node_modules");
    if (!bySdk || milliseconds < 200 || milliseconds > 120_000) return realTimeout(callback, milliseconds, ...rest);
    waited.push(milliseconds / 1000);
    return realTimeout(callback, 0, ...rest);
  };
  try {
    return { statuses, waited, result: await call() };
  } catch (error) {
    return { statuses, waited, error };
  } finally {
    globalThis.fetch = realFetch;
    globalThis.setTimeout = realTimeout;
  }
}

/** The rows of the table of errors: status, whether a retry can help, and what arranges for it. */
export const CASES = {
  "401 invalid token": { status: 401, retried: false, token: "broken" },
  "403 service not allowed": { status: 403, retried: false, token: "other" },
  "429 of a minute's window": { status: 429, retried: true, token: "minute" },
  "429 of a day's window": { status: 429, retried: false, token: "day" },
  "502 upstream error": { status: 502, retried: true, upstream: "garbage" },
  "502 credential rejected": { status: 502, retried: false, upstream: "rejected" },
  "503 storage down": { status: 503, retried: true, server: withoutStorage },
  "504 upstream timeout": { status: 504, retried: true, upstream: "silent" },
};

/** Arrange for a case, run `call(base, token)` in it, and put everything back. */
export async function inCase(vendor, { token = "good", upstream = "fine", server = base }, call) {
  await control(vendor, upstream);
  try {
    return await watch(() => call(server, tokens[token]));
  } finally {
    await control(vendor, "fine");
  }
}
