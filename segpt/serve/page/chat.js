"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const messages = [];
  let model = "";
  let going = null;

  function say(text, fault) {
    at("status").textContent = text;
    at("status").className = fault ? "fault" : "";
  }

  function show(role, text) {
    const box = document.createElement("div");
    box.className = `message ${role}`;
    const name = document.createElement("strong");
    name.textContent = role === "user" ? "You" : "Model";
    const body = document.createElement("span");
    body.textContent = text;
    box.append(name, body);
    at("conversation").append(box);
    box.scrollIntoView({ block: "end" });
    return body;
  }

  function busy(is) {
    at("send").disabled = is;
    at("reset").disabled = is;
    at("stop").disabled = !is;
    at("conversation").setAttribute("aria-busy", String(is));
  }

  function asked() {
    const system = at("system").value.trim();
    return (system ? [{ role: "system", content: system }] : []).concat(messages);
  }

  async function request() {
    for (;;) {
      const answer = await fetch("/v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        signal: going.signal,
        body: JSON.stringify({
          model, messages: asked(), stream: true,
          temperature: Number(at("temperature").value),
          max_tokens: Number(at("tokens").value),
        }),
      });
      if (answer.ok) return answer;
      const { error } = await answer.json();
      if (error.code !== "context_length_exceeded" || messages.length < 2) {
        throw new Error(error.message);
      }
      messages.splice(0, 2);  // the oldest turn
      say("The conversation is longer than the model can read: its oldest turns are left out.");
    }
  }

  async function read(answer, body) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    let text = "";
    const take = (event) => {
      if (!event.startsWith("data: ") || event === "data: [DONE]") return;
      const piece = JSON.parse(event.slice(6));
      if (piece.error) throw new Error(piece.error.message);
      for (const choice of piece.choices) text += choice.delta.content || "";
      body.textContent = text;
      body.scrollIntoView({ block: "end" });
    };
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        held += value;
        const events = held.split("\n\n");
        held = events.pop();
        events.forEach(take);
      }
    } finally {
      if (text) messages.push({ role: "assistant", content: text });
    }
  }

  async function send() {
    const text = at("message").value;
    if (going || !model || !text.trim()) return;
    at("message").value = "";
    messages.push({ role: "user", content: text });
    show("user", text);
    going = new AbortController();
    busy(true);
    say("The model answers.");
    try {
      const answer = await request();
      await read(answer, show("assistant", ""));
      say("");
    } catch (error) {
      const stopped = error.name === "AbortError";
      say(stopped ? "Stopped." : error.message, !stopped);
    } finally {
      // What got no answer is no part of the conversation: the next message begins where it did.
      if (messages.length && messages[messages.length - 1].role === "user") messages.pop();
      going = null;
      busy(false);
      at("message").focus();
    }
  }

  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && going) going.abort();
  });
  at("stop").addEventListener("click", () => going && going.abort());
  at("reset").addEventListener("click", () => {
    messages.length = 0;
    at("conversation").replaceChildren();
    say("A new conversation.");
    at("message").focus();
  });

  fetch("/v1/models").then((answer) => answer.json()).then(({ data }) => {
    model = data[0].id;
    at("model").textContent = model;
    at("about").textContent = data[0].instructed
      ? "" : "This model has no chat template: it continues what is written, and does not answer.";
    at("message").focus();
  }).catch(() => say("The server does not answer.", true));
})();
