"use strict";

const at = (id) => document.getElementById(id);
let prompts = [];

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

async function call(method, path, body) {
  const options = { method };
  if (body) Object.assign(options, { headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const response = await fetch(path, options);
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error || `${response.status}`);
  return response;
}

function complain(error) {
  const lost = error instanceof TypeError;
  at("problem").textContent = lost ? "The server does not answer." : error.message;
  at("problem").hidden = false;
  at("empty").hidden = true;
}

// What is loaded

function describe(prompt) {
  const parts = [`${prompt.length} vectors`];
  parts.push(prompt.labels.length ? `ranks ${prompt.labels.join(" · ")}` : "writes its answer");
  if (prompt.score !== null) parts.push(`${prompt.metric || "score"} ${prompt.score.toFixed(1)}`);
  return parts.join(", ");
}

function chosen() {
  return prompts.find((prompt) => prompt.name === at("prompt").value);
}

function showChosen() {
  const prompt = chosen();
  at("about").textContent = prompt ? describe(prompt) : "No prompt is loaded: load one below.";
  at("go").disabled = !prompt;
}

async function refresh() {
  const found = await (await call("GET", "/v1/prompts")).json();
  const before = at("prompt").value;
  prompts = found.prompts;
  at("prompt").replaceChildren(...prompts.map((prompt) => new Option(prompt.name)));
  if (prompts.some((prompt) => prompt.name === before)) at("prompt").value = before;
  at("free").textContent = `${prompts.length} loaded, ${found.free} free ${found.free === 1 ? "slot" : "slots"}.`;
  at("shelf").replaceChildren(
    ...prompts.map((prompt) => entry(prompt.name, describe(prompt), true)),
    ...found.available.map((name) => entry(name, "in the folder", false)),
  );
  showChosen();
}

function entry(name, about, loaded) {
  const item = make("li", "", loaded ? "" : "off");
  const words = make("div", "", "about");
  words.append(make("strong", name), make("small", about));
  const button = make("button", loaded ? "Remove" : "Load");
  button.type = "button";
  button.setAttribute("aria-label", `${button.textContent} ${name}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    at("problem").hidden = true;
    try {
      await call(loaded ? "DELETE" : "PUT", `/v1/prompts/${encodeURIComponent(name)}`);
    } catch (error) {
      complain(error);
    }
    await refresh().catch(complain);
  });
  item.append(words, button);
  return item;
}

async function health() {
  let status = "not reachable";
  try {
    status = (await (await fetch("/health")).json()).status;
  } catch {
    // it shows as not reachable
  }
  at("status").textContent = status;
  at("light").className = status === "ready" ? "ready" : "broken";
}

// Asking

function showBars(ranking) {
  const items = ranking.map(({ label, probability }) => {
    const item = make("li");
    const line = make("div", "", "label");
    line.append(make("span", label), make("span", `${(100 * probability).toFixed(1)} %`, "share"));
    const track = make("div", "", "track");
    track.setAttribute("aria-hidden", "true");
    const fill = make("div", "", "fill");
    fill.style.width = "0";
    track.append(fill);
    item.append(line, track);
    requestAnimationFrame(() => requestAnimationFrame(() => (fill.style.width = `${100 * probability}%`)));
    return item;
  });
  at("bars").replaceChildren(...items);
  at("bars").hidden = false;
}

async function rank(prompt, text) {
  const response = await call("POST", "/v1/rank", { prompt, texts: [text] });
  showBars((await response.json()).rankings[0]);
}

async function write(prompt, text) {
  const response = await call("POST", "/v1/stream", { prompt, text });
  const written = at("written");
  written.textContent = "";
  written.className = "writing";
  written.hidden = false;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = JSON.parse(event.split("\n").find((line) => line.startsWith("data: ")).slice(6));
        if (data.error) throw new Error(data.error);
        written.textContent = data.text || "(nothing)";
      }
    }
  } finally {
    written.className = "";
  }
}

async function ask(event) {
  event.preventDefault();
  const prompt = chosen();
  const text = at("text").value.trim();
  if (!prompt || !text || at("go").disabled) return;
  for (const id of ["empty", "problem", "bars", "written"]) at(id).hidden = true;
  at("took").textContent = "";
  at("go").disabled = true;
  at("answer").setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    await (prompt.labels.length ? rank : write)(prompt.name, text);
    at("took").textContent = `${prompt.name}, ${Math.round(performance.now() - began)} ms`;
  } catch (error) {
    complain(error);
  }
  at("answer").removeAttribute("aria-busy");
  at("go").disabled = false;
}

at("ask").addEventListener("submit", ask);
at("prompt").addEventListener("change", showChosen);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
refresh().catch(complain);
health();
setInterval(health, 5000);
