// The page: a clip, a question, the answers of the base and of the patched base, and which seconds they depend on.

import { make, markdown } from "./markdown.js";
import * as server from "./server.js";
import { TimeAxis } from "./time.js";

const $ = (id) => document.getElementById(id);
const IDEAS = ["What do you hear?", "What happens here?"];
const time = new TimeAxis($("wave"));
// clip: the promise of { kind, uri }; answers: of the questions about it, where they are known
const state = { base: "", clip: null, answers: new Map(), asking: null, asked: null };

// What went wrong, in words; the server's question for a key opens the dialog.
function tell(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) return askForKey();
  if (!(error instanceof server.Trouble)) console.error(error);
  $("trouble").textContent = error.message;
  $("trouble").hidden = false;
}

const calm = () => ($("trouble").hidden = true);

function askForKey() {
  $("open-key").hidden = false;
  if (!$("key").open) $("key").showModal();
}

// Models

async function start() {
  calm();
  try {
    const models = await server.models();
    state.base = models[0].root;
    $("open-key").hidden = !server.hasKey();
    $("base").textContent = `base: ${state.base}`;
    $("patches").querySelectorAll("div").forEach((each) => each.remove());
    $("patches").append(...models.slice(1).map(choice));
    if (models.length === 1) $("patches").append(make("div", {}, "This server has no patches: start it with --patch."));
    await offer(await server.examples());
  } catch (error) {
    tell(error);
  }
}

// The switch of a patch, its senses, and its card.
function choice(model, i) {
  const name = model.id.slice(state.base.length + 1);
  const input = make("input", { type: "checkbox", value: name, checked: i === 0 });
  input.setAttribute("role", "switch");
  const senses = Object.keys(model.senses).map((sense) => make("span", { className: "sense" }, sense));
  const card = make("button", { type: "button", className: "quiet" }, "Card");
  card.setAttribute("aria-label", `Card of ${name}`);
  card.addEventListener("click", () => showCard(name));
  return make("div", {}, make("label", {}, input, make("span", {}, name), ...senses), card);
}

const chosen = () => [...$("patches").querySelectorAll("input:checked")].map((input) => input.value);

async function showCard(name) {
  calm();
  try {
    const { card, certificate } = await server.card(name);
    $("card-title").textContent = name;
    const proof = make("div", { className: `certificate ${certificate.kind}` }, markdown(certificate.text));
    $("card-text").replaceChildren(...(certificate.text ? [proof] : []), markdown(card));
    $("card").showModal();
    $("card").scrollTop = 0;
  } catch (error) {
    tell(error);
  }
}

// Clips

async function offer(examples) {
  $("examples").hidden = !examples.length;
  const buttons = examples.map((example, i) => {
    const label = `${example.about} ${i + 1}`;
    const button = make("button", { type: "button", className: "quiet" }, make("video", { muted: true }), label);
    return { example, button };
  });
  $("examples").querySelector("ul").replaceChildren(...buttons.map(({ button }) => make("li", {}, button)));
  for (const { example, button } of buttons) {
    const film = await server.example(example.id);
    button.querySelector("video").src = `${URL.createObjectURL(film)}#t=1`;
    const file = new File([film], `playroom-${example.id}.mp4`, { type: film.type });
    button.addEventListener("click", () => take(file, example.questions));
  }
}

// A file becomes the clip that is asked about.
async function take(file, questions = IDEAS.map((text) => ({ text }))) {
  calm();
  state.asking?.abort();
  const kind = kindOf(file), clip = address(file).then((uri) => ({ kind, uri }));
  state.clip = clip;
  state.answers = new Map(questions.map(({ text, answer }) => [text, answer]));
  $("about").textContent = `${file.name}, ${size(file.size)}`;
  $("about").hidden = false;
  $("ideas").replaceChildren(...questions.map(({ text }) => make("li", {}, idea(text))));
  play(file, kind);
  forget();
  $("earlier").hidden = true;
  $("earlier").tBodies[0].replaceChildren();
  $("time").hidden = kind === "image";
  $("no-wave").hidden = true;
  try {
    await clip;
    const heard = await time.hear(file);
    if (state.clip !== clip) return;
    $("no-wave").hidden = heard;
    $("wave").setAttribute("aria-label", `The sound of ${file.name} over ${time.seconds.toFixed(1)} seconds`);
  } catch (error) {
    if (state.clip !== clip) return;
    state.clip = null;
    tell(new server.Trouble(`${file.name} cannot be read: ${error.message}`));
  }
}

function kindOf(file) {
  if (file.type.startsWith("audio/") || /\.(wav|mp3|flac|ogg|opus|m4a|aac)$/i.test(file.name)) return "audio";
  return file.type.startsWith("image/") ? "image" : "video";
}

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

function address(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function play(file, kind) {
  time.clear();
  const old = $("player").firstElementChild;
  if (old) URL.revokeObjectURL(old.src);
  const player = make(kind === "image" ? "img" : kind, { src: URL.createObjectURL(file) });
  if (kind === "image") player.alt = file.name;
  else {
    Object.assign(player, { controls: true, playsInline: true });
    time.follow(player);
  }
  player.addEventListener("error", () => {
    player.replaceWith(make("p", { className: "soft" }, "This browser cannot play it. The server reads it all the same."));
    time.player = null;
  });
  $("player").replaceChildren(player);
  $("player").hidden = false;
}

function idea(text) {
  const button = make("button", { type: "button", className: "quiet" }, text);
  button.addEventListener("click", () => {
    $("question").value = text;
    ask();
  });
  return button;
}

// Answers

async function ask() {
  calm();
  const question = $("question").value.trim();
  if (!state.clip) return tell(new server.Trouble("Choose a clip first: drop a file, or try one of the Playroom."));
  if (!question) return $("question").focus();
  state.asking?.abort();
  remember();
  forget();
  const asking = (state.asking = new AbortController());
  $("send").textContent = "Stop";
  const patches = chosen(), model = [state.base, ...patches].join("+");
  const panes = [pane($("alone"), "Base alone", state.base)];
  if (patches.length) panes.push(pane($("patched"), `With ${patches.join(" and ")}`, model));
  const { clip } = state;
  const ends = await Promise.all(panes.map((each) => answered(each, clip, question, asking.signal)));
  if (state.asking !== asking) return;
  state.asking = null;
  $("send").textContent = "Ask";
  const texts = panes.map((each) => each.text.textContent);
  state.asked = { clip, question, model, texts };
  judge(panes, ends, state.answers.get(question));
  const reads = Object.values(ends[1]?.pave.signals ?? {});
  $("explain").disabled = !reads.some((each) => each.startsWith("present"));
}

async function answered({ model, text, facts }, clip, question, signal) {
  const begin = performance.now();
  text.classList.add("waiting");
  try {
    const end = await server.answer(model, await clip, question, (piece) => {
      text.classList.remove("waiting");
      text.append(piece);
    }, signal);
    facts.append(...told(end, performance.now() - begin));
    return end;
  } catch (error) {
    if (error.status === 401) tell(error);
    text.classList.add("failed");
    text.append(error.name === "AbortError" ? " (stopped)" : error.message);
    return null;
  } finally {
    text.classList.remove("waiting");
  }
}

// What the server says it read, what is wrong with the clip, and what the answer took.
function told({ finish, usage, pave }, milliseconds) {
  const senses = Object.entries(pave.signals).map(([sense, said]) =>
    make("li", { className: said.startsWith("present") ? "present" : "absent" }, make("strong", {}, sense), ` ${said}`));
  const warnings = pave.warnings.map((warning) => make("li", { className: "absent" }, warning));
  const tokens = usage.completion_tokens, cut = finish === "length" ? "cut after " : "";
  const cost = `${cut}${tokens} token${tokens === 1 ? "" : "s"}, ${(milliseconds / 1000).toFixed(2)} s`;
  return [...senses, ...warnings, make("li", {}, cost)];
}

function pane(article, title, model) {
  const text = make("p", { className: "text" }), facts = make("ul", { className: "facts" });
  text.setAttribute("aria-live", "polite");
  article.replaceChildren(make("h3", {}, title), make("code", {}, model), text, facts);
  return { model, text, facts };
}

// Whether the answers are right, where the scene is known.
function judge(panes, ends, truth) {
  $("truth").hidden = truth === undefined;
  if (truth === undefined) return;
  $("truth").textContent = `In this scene: ${truth}`;
  panes.forEach(({ text }, i) => {
    if (!ends[i]) return;
    const right = text.textContent === truth;
    text.append(make("span", { className: right ? "right" : "wrong" }, right ? "right" : "wrong"));
  });
}

function remember() {
  if (!state.asked) return;
  const { question, texts } = state.asked;
  const cells = [question, texts[0], texts[1] ?? "not asked"].map((text) => make("td", {}, text));
  $("earlier").tBodies[0].prepend(make("tr", {}, ...cells));
  $("earlier").hidden = false;
  state.asked = null;
}

// Empties what belongs to the last question.
function forget() {
  state.asked = null;
  $("explain").disabled = true;
  $("truth").hidden = true;
  $("why").replaceChildren();
  time.show(null);
  const blank = [["alone", "Base alone", "what the frozen base sees"], ["patched", "With patches", "what it knows with a new sense"]];
  for (const [id, title, hint] of blank) $(id).replaceChildren(make("h3", {}, title), make("p", { className: "soft" }, hint));
}

async function explain() {
  calm();
  const { asked } = state;
  $("explain").disabled = true;
  $("why").replaceChildren(make("p", { className: "waiting" }, "Each second is silenced in turn, and the question asked again"));
  try {
    const found = await server.explain(asked.model, await asked.clip, asked.question);
    if (state.asked !== asked) return;
    time.show(found);
    const [first, ...others] = found.text;
    const plays = time.player ? found.cited.map((each) => {
      const button = make("button", { type: "button", className: "quiet" }, `Play ${each.start.toFixed(1)}–${each.end.toFixed(1)} s`);
      button.addEventListener("click", () => time.play(each.start, each.end));
      return button;
    }) : [];
    const lines = others.map((line) => make("li", {}, line.trim()));
    $("why").replaceChildren(make("p", { className: "line" }, make("strong", {}, first), ...plays), make("ul", {}, ...lines));
  } catch (error) {
    $("why").replaceChildren();
    $("explain").disabled = state.asked !== asked;
    tell(error);
  }
}

// Events

$("file").addEventListener("change", ({ target }) => target.files[0] && take(target.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const files = event.dataTransfer.files;
  if (files.length) await take(files[0]);
  if (files.length > 1) tell(new server.Trouble(`A question is about one clip: ${files[0].name} was taken, the others not.`));
});
document.querySelector("#ask form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.asking) state.asking.abort();
  else ask();
});
$("explain").addEventListener("click", explain);
$("open-key").addEventListener("click", askForKey);
$("key").addEventListener("close", () => {
  if ($("key").returnValue !== "keep") return;
  server.keep($("key-text").value.trim());
  $("key-text").value = "";
  start();
});
document.querySelector("[data-close]").addEventListener("click", () => $("card").close());

forget();
start();
