// The server that this page came from: models, cards, examples, streamed answers, explanations.
// In: plain values. Out: promises; what fails is a Trouble, with a reason in plain words. Knows nothing of the page.

const STORED = "pave-key";

export class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const keep = (key) => sessionStorage.setItem(STORED, key);
export const hasKey = () => sessionStorage.getItem(STORED) !== null;

async function send(path, body, signal) {
  const key = sessionStorage.getItem(STORED);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const large = options.body?.length > 1 << 20 ? ", or the clip is larger than it takes" : "";
    throw new Trouble(`No answer from the server: it has stopped, it cannot be reached${large}.`);
  }
  if (!reply.ok) throw await refused(reply);
  return reply;
}

async function refused(reply) {
  const error = await reply.json().then((body) => body.error, () => null);
  const reason = error?.message ?? `status ${reply.status}`;
  const again = reply.headers.get("retry-after");
  const words = {
    401: "The server does not know this key",
    404: "The server has no such thing",
    408: "The upload took too long",
    413: "The clip is too large",
    429: `The server is busy${again ? `; try again in ${again} s` : ""}`,
    500: `The server failed (request ${reply.headers.get("x-request-id")})`,
  };
  return new Trouble(`${words[reply.status] ?? "The server cannot answer this"}: ${reason}.`, reply.status);
}

const read = async (path) => (await send(path)).json();

export const models = async () => (await read("v1/models")).data;
export const examples = async () => (await read("v1/examples")).data;
export const card = (patch) => read(`v1/cards/${encodeURIComponent(patch)}`);
export const example = async (id) => (await send(`v1/examples/${encodeURIComponent(id)}`)).blob();

// clip: { kind: "video" | "audio" | "image", uri: "data:…" }
function asking(model, clip, question) {
  const part = { type: `${clip.kind}_url`, [`${clip.kind}_url`]: { url: clip.uri } };
  return { model, messages: [{ role: "user", content: [part, { type: "text", text: question }] }] };
}

export async function explain(model, clip, question) {
  return (await send("v1/explain", asking(model, clip, question))).json();
}

// The answer of one model. piece: called with each piece of text. Returns { finish, usage, pave }.
export async function answer(model, clip, question, piece, signal) {
  const more = { stream: true, stream_options: { include_usage: true } };
  const reply = await send("v1/chat/completions", { ...asking(model, clip, question), ...more }, signal);
  const end = {};
  for await (const event of events(reply.body)) {
    if (event.error) throw new Trouble(`The answer broke off: ${event.error.message}.`);
    const choice = event.choices[0];
    if (choice?.delta.content) piece(choice.delta.content);
    if (choice?.finish_reason) Object.assign(end, { finish: choice.finish_reason, pave: event.pave });
    if (event.usage) end.usage = event.usage;
  }
  if (!end.finish) throw new Trouble("The answer broke off: the server has closed the connection.");
  return end;
}

// Server-sent events, each a line `data: JSON`, up to `data: [DONE]`.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
