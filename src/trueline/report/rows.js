(() => {
  "use strict";
  // The rows behind the rates: unpacked, filtered, counted and shown; all text stays text.
  const box = document.querySelector(".rows");
  if (!box) return;
  const PAGE = 20;
  const EVENTS = {
    asr: ["attack succeeded", "attack failed"],
    over_refusal: ["refused", "not refused"],
    utility: ["good answer", "not a good answer"],
  };
  const MEASURES = { asr: "attack success", over_refusal: "over-refusal", utility: "good answers" };
  const FLAGS = ["truncated", "empty", "unparsable"];
  const MISSING = "no label";

  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const make = (name, facts = {}, ...inside) => {
    const element = Object.assign(document.createElement(name), facts);
    element.append(...inside);
    return element;
  };

  // --- the data: one table, and texts in chunks that are unpacked when a row of theirs is shown
  const waiting = new Map();
  window.truelineRows = (index, text) => waiting.get(index)?.(text);
  const fetched = (index) => {
    const inside = document.getElementById(`rows-${index}`);
    if (inside) return Promise.resolve(inside.textContent);
    return new Promise((done, failed) => {
      waiting.set(index, done);
      const script = make("script", { src: `${box.dataset.folder}/${index}.js` });
      script.addEventListener("error", () => failed(new Error(script.src)));
      document.head.append(script);
    });
  };
  const chunks = new Map();
  const chunk = (index) => {
    if (!chunks.has(index)) chunks.set(index, fetched(index).then(unpack));
    return chunks.get(index);
  };
  let data = null;
  const word = (kind, index) => data.words[kind]?.[index] ?? "";
  const texts = async (row) => (await chunk(Math.floor(row.at / data.chunk)))[row.at % data.chunk];

  // --- which rows are counted
  const start = () => ({
    model: data.models.length > 1 ? data.models[1] : data.models[0],
    measure: (data.words.measure ?? [""])[0],
  });
  let asked = {};
  const judged = (row, model) => {
    const at = data.models.indexOf(model);
    return (row.judged[at] ?? []).find(
      (one) =>
        (!asked.judge || word("judge", one[0]) === asked.judge) &&
        (!asked.measure || word("measure", one[1]) === asked.measure),
    );
  };
  const told = (row, model) => (judged(row, model)?.[2] ?? -1) >= 0;
  const isCounted = (row) =>
    Boolean(judged(row, asked.model)) &&
    (!asked.benchmark || row.benchmark === asked.benchmark) &&
    (!asked.attack || row.attack === asked.attack) &&
    (!asked.category || row.category === asked.category) &&
    (!asked.with || (told(row, asked.model) && told(row, asked.with)));
  const labelOf = (one) => word("label", one[3]);
  const happened = (row) => {
    const one = judged(row, asked.model);
    if (asked.measure) return one[2] < 0 ? null : one[2] === 1;
    if (asked.label) return labelOf(one) === (asked.label === MISSING ? "" : asked.label);
    if (asked.flag) return Boolean(one[5] & (1 << FLAGS.indexOf(asked.flag)));
    return null;
  };
  const isShown = (row) => {
    const one = judged(row, asked.model);
    if (asked.label && labelOf(one) !== (asked.label === MISSING ? "" : asked.label)) return false;
    if (asked.flag && !(one[5] & (1 << FLAGS.indexOf(asked.flag)))) return false;
    const event = happened(row);
    if (asked.outcome === "yes") return event === true;
    if (asked.outcome === "no") return event === false;
    if (asked.outcome === "none") return event === null;
    if (asked.outcome === "differs") {
      const models = asked.with ? [asked.model, asked.with] : data.models;
      const events = models.filter((m) => told(row, m)).map((m) => judged(row, m)[2]);
      return new Set(events).size > 1;
    }
    return true;
  };
  const found = async () => {
    if (asked.row) return data.rows.filter((row) => row.key === asked.row);
    let rows = data.rows.filter((row) => isCounted(row) && isShown(row));
    if (asked.text) {
      const wanted = asked.text.toLowerCase();
      const hits = await Promise.all(
        rows.map(async (row) => JSON.stringify(await texts(row)).toLowerCase().includes(wanted)),
      );
      rows = rows.filter((_, index) => hits[index]);
    }
    const first = asked.measure !== "utility"; // what went wrong comes first
    const rank = (row) => (happened(row) === null ? 2 : happened(row) === first ? 0 : 1);
    return rows.map((row) => [rank(row), row]).sort((a, b) => a[0] - b[0]).map(([, row]) => row);
  };

  // --- how they are told
  const percent = (part, all) => `${((100 * part) / all).toFixed(1)}%`;
  const count = (number) => number.toLocaleString("en-US");
  const rate = () => {
    if (asked.row) return "One prompt, and every model's answer.";
    const rows = data.rows.filter(isCounted);
    const events = rows.map(happened);
    const yes = events.filter((event) => event === true).length;
    const known = events.filter((event) => event !== null).length;
    const left = rows.length - known;
    const what = asked.measure
      ? EVENTS[asked.measure][0]
      : asked.label
        ? `labeled ${asked.label}`
        : (asked.flag ?? "");
    const where = [asked.benchmark, asked.attack, asked.category, asked.judge && `judged by ${asked.judge}`]
      .filter(Boolean)
      .join(", ");
    if (!what) return `${count(rows.length)} answers of ${asked.model}${where ? ` (${where})` : ""}.`;
    const share = known ? ` (${percent(yes, known)})` : "";
    const also = asked.with ? `, of prompts judged for ${asked.with}, too` : "";
    const rest = left ? ` ${count(left)} more ${left === 1 ? "is" : "are"} not judged and not counted.` : "";
    const event = what[0].toUpperCase() + what.slice(1);
    return (
      `${event} in ${count(yes)} of ${count(known)} answers of ${asked.model}${share}` +
      `${also}${where ? `; ${where}` : ""}.${rest}`
    );
  };
  const mark = (model) => {
    const legend = [...box.querySelectorAll(".legend li")];
    return legend[data.models.indexOf(model)].querySelector("svg").cloneNode(true);
  };
  const isBad = (measure, event) => (event < 0 ? null : (event === 1) === (measure !== "utility"));
  const badge = (one) => {
    const bad = isBad(word("measure", one[1]), one[2]);
    const tone = bad === null ? "" : bad ? " bad" : " good";
    const text = labelOf(one) || word("verdict", one[4]) || EVENTS[word("measure", one[1])][1 - one[2]];
    return make("span", { className: `badge${tone}`, textContent: text ?? "not judged" });
  };
  const reason = (one, why) => {
    const measure = word("measure", one[1]);
    const event = one[2] < 0 ? "not judged" : EVENTS[measure][1 - one[2]];
    const flags = FLAGS.filter((_, bit) => one[5] & (1 << bit));
    const verdict = [word("verdict", one[4]), ...flags, one[6] === null ? "" : `score ${one[6]}`];
    const said = verdict.filter((part) => part && part !== event).join(", ");
    return make(
      "li", {},
      make("b", { textContent: word("judge", one[0]) }),
      `: ${event}${said ? ` (${said})` : ""}${why ? `. ${why}` : ""}`,
    );
  };
  const revealed = new Set();
  const veil = (article, row) => {
    const open = !row.harmful || revealed.has(row.key);
    const body = article.querySelector(".answers");
    body.classList.toggle("veiled", !open);
    body.inert = !open;
    const button = article.querySelector("button.reveal");
    if (!button) return;
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Hide" : "Show answers";
  };
  const article = async (row) => {
    const [prompt, asAsked, answers] = await texts(row);
    const kind = [row.harmful ? "harmful" : "safe", row.benchmark, row.attack, row.category];
    const link = make("a", { href: `#row=${row.key}`, className: "permalink", textContent: "link" });
    link.setAttribute("aria-label", "Link to this prompt alone");
    const words = make("div", {},
      make("p", { className: "label" }, `${kind.filter(Boolean).join(", ")} `, link),
      make("p", { className: "prompt", dir: "auto", textContent: prompt }),
    );
    if (asAsked) {
      const told = make("p", { className: "words asked", dir: "auto", textContent: asAsked });
      words.append(make("details", {}, make("summary", { textContent: "As it was asked" }), told));
    }
    const head = make("div", { className: "head" }, words);
    const wide = answers.filter(Boolean).length === 4 ? " two" : "";
    const body = make("div", { className: `answers${wide}`, id: `row-${row.key}` });
    data.models.forEach((model, at) => {
      if (!answers[at]) return;
      const [answer, whys] = answers[at];
      const title = make("h4", {}, mark(model), make("bdi", { textContent: model }));
      const chosen = judged(row, model) ?? row.judged[at][0];
      title.append(badge(chosen));
      const text = answer.trim()
        ? make("p", { className: "words", dir: "auto", tabIndex: 0, textContent: answer })
        : make("p", { className: "words empty", textContent: "empty answer" });
      const reasons = make("ul", { className: "reasons" });
      row.judged[at].forEach((one, index) => reasons.append(reason(one, whys[index])));
      body.append(make("div", { className: "answer" }, title, text, reasons));
    });
    const element = make("article", { className: "sample" }, head, body);
    if (row.harmful) {
      const button = make("button", { type: "button", className: "reveal" });
      button.setAttribute("aria-controls", body.id);
      button.addEventListener("click", () => {
        revealed[revealed.has(row.key) ? "delete" : "add"](row.key);
        veil(element, row);
      });
      head.append(button);
    }
    veil(element, row);
    return element;
  };

  // --- the list
  const list = box.querySelector(".list");
  const status = box.querySelector(".count");
  const more = box.querySelector("button.more");
  const all = box.querySelector("button.show-all");
  let rows = [];
  let shown = 0;
  let turn = 0;
  const next = async () => {
    const own = turn;
    const batch = rows.slice(shown, shown + PAGE);
    const made = await Promise.all(batch.map(article));
    if (own !== turn) return;
    list.append(...made);
    shown += batch.length;
    more.hidden = shown >= rows.length;
    more.textContent = `Show ${Math.min(PAGE, rows.length - shown)} more`;
    box.querySelector(".shown").textContent =
      rows.length === 0 ? "No row is left by these filters." : `${count(shown)} of ${count(rows.length)} rows shown.`;
    return made[0];
  };
  const show = async () => {
    const own = ++turn;
    status.textContent = rate();
    const kept = await found();
    if (own !== turn) return;
    [rows, shown] = [kept, 0];
    list.replaceChildren();
    await next();
  };

  // --- filters, which the address tells, so that a view can be handed on
  const filters = box.querySelector(".filters");
  const fields = {};
  const address = () => {
    const told = Object.entries(asked).filter(([, value]) => value);
    return asked.row ? `#row=${asked.row}` : `#rows?${new URLSearchParams(told)}`;
  };
  const keep = () => {
    delete asked.row;
    history.replaceState(null, "", address());
    fill();
    return show();
  };
  const choice = (name, title, options) => {
    if (options.length < 2) return;
    const select = make("select", { name });
    for (const [value, text] of options) select.append(make("option", { value, textContent: text }));
    select.addEventListener("change", () => {
      asked[name] = select.value;
      keep();
    });
    fields[name] = select;
    filters.append(make("label", {}, title, select));
  };
  const fill = () => {
    for (const [name, field] of Object.entries(fields)) field.value = asked[name] ?? "";
    box.querySelector(".with").textContent = asked.with ? `Only prompts that ${asked.with} was judged on, too.` : "";
  };
  const build = () => {
    const every = (kind, title) => [["", title], ...(data.words[kind] ?? []).filter(Boolean).map((w) => [w, w])];
    const several = (options) => (options.length > 2 ? options : []);
    choice("model", "Model", data.models.map((model) => [model, model]));
    choice("measure", "Count", [
      ...(data.words.measure ?? []).map((measure) => [measure, MEASURES[measure]]),
      ["", "answers of any kind"],
    ]);
    choice("attack", "Attack", several(every("attack", "all")));
    choice("benchmark", "Benchmark", several(every("benchmark", "all")));
    choice("category", "Category", several(every("category", "all")));
    choice("label", "Label", (data.words.label ?? []).some(Boolean) ? [...every("label", "all"), [MISSING, MISSING]] : []);
    choice("judge", "Judge", several(every("judge", "first that tells")));
    choice("outcome", "Show", [
      ["", "all that count"], ["yes", "where it happened"], ["no", "where it did not"],
      ["none", "not judged"], ["differs", "where models differ"],
    ]);
    choice("flag", "Flag", [["", "any or none"], ...FLAGS.map((flag) => [flag, flag])]);
    const search = make("input", { type: "search", name: "text", placeholder: "in prompt, answer or reason" });
    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        asked.text = search.value;
        keep();
      }, 200);
    });
    fields.text = search;
    filters.append(make("label", {}, "Text", search));
  };
  all.addEventListener("click", () => {
    const open = all.getAttribute("aria-pressed") !== "true";
    all.setAttribute("aria-pressed", String(open));
    all.textContent = open ? "Hide all answers" : "Show all answers";
    for (const row of data.rows) if (row.harmful) revealed[open ? "add" : "delete"](row.key);
    const byKey = new Map(rows.map((row) => [row.key, row]));
    for (const each of list.children) veil(each, byKey.get(each.querySelector(".answers").id.slice(4)));
  });
  more.addEventListener("click", async () => (await next())?.querySelector("a, button")?.focus());

  // --- arriving by a link, and going back
  let from = null;
  const back = box.querySelector("button.back");
  back.addEventListener("click", () => from?.focus());
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#row']");
    if (link && !box.contains(link)) from = link;
  });
  const arrive = async () => {
    const hash = location.hash;
    const isRows = hash === "#rows" || hash.startsWith("#rows?");
    if (!isRows && !hash.startsWith("#row=")) return;
    asked = isRows && hash.length > 6 ? Object.fromEntries(new URLSearchParams(hash.slice(6))) : { ...start() };
    if (!isRows) asked.row = hash.slice(5);
    fill();
    back.hidden = from === null;
    await show();
    const heading = box.closest("section").querySelector("h2");
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
    box.closest("section").scrollIntoView();
    box.dataset.at = hash;
  };
  const begin = async () => {
    data = await unpack(document.getElementById("rows-table").textContent);
    data.rows = data.rows.map(([[b, a, c], harmful, key, own], at) => ({
      at, key, harmful: harmful === 1, judged: own,
      benchmark: word("benchmark", b), attack: word("attack", a), category: word("category", c),
    }));
    build();
    asked = start();
    fill();
    window.addEventListener("hashchange", arrive);
    if (location.hash.startsWith("#row")) await arrive();
    else await show();
    box.dataset.ready = String(Math.round(performance.now())); // milliseconds since it was opened
  };
  begin()
    .catch((error) => {
      status.textContent = `The rows cannot be shown (${error.message}).`;
    })
    .finally(() => window.dispatchEvent(new Event("rows-ready")));
})();
