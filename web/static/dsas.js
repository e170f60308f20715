// Follows the fleet: when the server says that something happened, the live
// part of the page is fetched anew and what differs is changed in place, so
// that what the operator chose, typed, opened or marked stays. Forms are sent
// from here and their errors shown where they are. Without this script the
// pages work all the same, and are made anew by hand.
"use strict";
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  const $ = (id) => document.getElementById(id);
  const each = (sel, f, root = document) => root.querySelectorAll(sel).forEach(f);

  // --- changing what differs -------------------------------------------------

  // What belongs to the operator and not to the server.
  const own = (el, name) =>
    (name === "open" && el.localName === "details") || (name === "hidden" && (el.localName === "tr" || el.hasAttribute("data-js") || el.id === "none")) ||
    (name === "disabled" && el.localName === "button") || (name === "class" && el.id === "chosen");

  const morph = (from, to) => {
    if (from.nodeType === 3 || from.nodeType === 8) { if (from.data !== to.data) from.data = to.data; return; }
    if (from.hasAttribute("data-keep")) return;
    for (const { name, value } of [...to.attributes]) if (from.getAttribute(name) !== value && !own(from, name)) from.setAttribute(name, value);
    for (const { name } of [...from.attributes]) if (!to.hasAttribute(name) && !own(from, name)) from.removeAttribute(name);
    morphChildren(from, to);
  };

  const morphChildren = (from, to) => {
    const byID = new Map();
    for (const c of from.children) if (c.id) byID.set(c.id, c);
    let at = from.firstChild;
    for (const want of [...to.childNodes]) {
      let have = want.id ? byID.get(want.id) : null;
      if (have) {
        if (have !== at) from.insertBefore(have, at); else at = at.nextSibling;
      } else if (!want.id && at && !at.id && at.nodeType === want.nodeType && at.nodeName === want.nodeName) {
        have = at; at = at.nextSibling;
      } else {
        from.insertBefore(want, at); // moves out of the fetched copy
        continue;
      }
      morph(have, want);
    }
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
  };

  // --- ages count on by themselves -------------------------------------------

  let ahead = 0; // the server's clock less ours
  const readClock = () => { const now = Number($("clock")?.dataset.now); if (now) ahead = now - Date.now(); };
  const age = (ms) => {
    const s = Math.max(0, Math.floor(ms / 1000));
    return s < 60 ? s + "s" : s < 3600 ? Math.floor(s / 60) + "m" : s < 48 * 3600 ? Math.floor(s / 3600) + "h" : Math.floor(s / 86400) + "d";
  };
  const ages = () => each("time[data-at]", (t) => {
    const text = age(Date.now() + ahead - Number(t.dataset.at));
    if (t.textContent !== text) t.textContent = text;
  }, live);

  // --- filter: as filter.go has it -------------------------------------------

  const inRange = (word) => { // as dsas.ExpandNames, one bracket to a name
    const all = word.split(/,(?![^[]*\])/).map(oneRange);
    return (name) => all.some((r) => r(name));
  };
  const oneRange = (word) => {
    if (!word.includes("[")) return (name) => name === word;
    const m = /^([^[\]]*)\[([0-9,\- ]+)\]([^[\]]*)$/.exec(word);
    if (!m) return () => false;
    const parts = m[2].split(",").map((p) => p.split("-"));
    return (name) => {
      if (!name.startsWith(m[1]) || !name.endsWith(m[3]) || name.length <= m[1].length + m[3].length) return false;
      const digits = name.slice(m[1].length, name.length - m[3].length);
      return /^\d+$/.test(digits) && parts.some(([lo, hi]) => lo && Number(digits) >= Number(lo) && Number(digits) <= Number(hi ?? lo) &&
        digits.length === Math.max(lo.length, String(Number(digits)).length));
    };
  };
  const parse = (q) => q.toLowerCase().split(/\s+/).filter(Boolean).map((w) => {
    const not = w.startsWith("!"); if (not) w = w.slice(1);
    const field = /^(role|phase):(.*)$/.exec(w);
    const is = field ? (d) => d[field[1]] === field[2] : w.includes("[") ? ((r) => (d) => r(d.name))(inRange(w)) : (d) => d.find.includes(w);
    return w === "" ? () => true : (d) => is(d) !== not;
  });
  const rows = () => [...live.querySelectorAll("#nodes tbody tr")];
  const filter = () => {
    const q = $("q"); if (!q) return;
    const words = parse(q.value), all = rows();
    let n = 0;
    for (const r of all) { const fits = words.every((w) => w(r.dataset)); if (r.hidden === fits) r.hidden = !fits; if (fits) n++; }
    const text = words.length ? n + " of " + all.length : "";
    if ($("shown").textContent !== text) $("shown").textContent = text;
    $("none").hidden = n > 0;
    each("a[data-filter]", (a) => { if (a.dataset.filter === q.value.trim()) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current"); }, live);
    count();
  };
  const setFilter = (text) => {
    if ($("q").value !== text) $("q").value = text;
    history.replaceState(null, "", text.trim() ? "/?q=" + encodeURIComponent(text.trim()) : "/");
    filter();
  };

  // --- choosing nodes ---------------------------------------------------------

  const boxes = () => rows().map((r) => r.querySelector("input[name=node]"));
  const count = () => {
    const out = $("chosen"), all = $("all"); if (!out) return;
    const list = boxes(), chosen = list.filter((b) => b.checked), shown = list.filter((b) => !b.closest("tr").hidden);
    const away = chosen.filter((b) => b.closest("tr").hidden).length, here = chosen.length - away;
    const text = chosen.length === 0 ? "none chosen" : chosen.length + " chosen" + (away ? ", " + away + " of them not shown" : "");
    if (out.textContent !== text) out.textContent = text;
    out.classList.toggle("some", chosen.length > 0);
    all.checked = here > 0 && here === shown.length; all.indeterminate = here > 0 && here < shown.length;
  };
  let lastBox = null;
  live.addEventListener("click", (ev) => {
    const a = ev.target.closest("a[data-filter]");
    if (a && $("q") && !ev.ctrlKey && !ev.metaKey && !ev.shiftKey) {
      ev.preventDefault();
      setFilter($("q").value.trim() === a.dataset.filter ? "" : a.dataset.filter);
    }
    if (ev.target.matches?.("#nodes input[name=node]")) {
      if (ev.shiftKey && lastBox?.isConnected) { // from the last one to this one
        const shown = boxes().filter((b) => !b.closest("tr").hidden);
        const [i, j] = [shown.indexOf(lastBox), shown.indexOf(ev.target)].sort((x, y) => x - y);
        if (i >= 0) for (const b of shown.slice(i, j + 1)) b.checked = ev.target.checked;
      }
      lastBox = ev.target;
      count();
    }
  });
  live.addEventListener("change", (ev) => {
    if (ev.target.id === "all") for (const b of boxes()) if (!b.closest("tr").hidden) b.checked = ev.target.checked;
    count();
  });
  live.addEventListener("input", (ev) => { if (ev.target.id === "q") setFilter(ev.target.value); });

  // --- forms ------------------------------------------------------------------

  const tell = (el, answer) => {
    el.replaceChildren();
    const p = document.createElement("p"); p.textContent = answer.text; el.append(p);
    if (answer.lines?.length) {
      const ul = document.createElement("ul");
      for (const l of answer.lines) { const li = document.createElement("li"); li.textContent = l; ul.append(li); }
      el.append(ul);
    }
  };
  const closable = (box) => {
    const x = document.createElement("button"); x.className = "close"; x.type = "button"; x.textContent = "×"; x.setAttribute("aria-label", "close"); x.onclick = () => box.remove();
    box.append(x);
    if (!box.classList.contains("bad")) setTimeout(() => box.remove(), 12000);
  };
  const toast = (answer) => {
    const box = document.createElement("div"); box.className = "said" + (answer.bad ? " bad" : "");
    tell(box, answer); closable(box); $("said").replaceChildren(box);
  };
  const ask = (q) => new Promise((done) => {
    const d = $("sure");
    $("sure-text").textContent = q.text; $("sure-nodes").textContent = q.nodes; $("sure-yes").textContent = q.button;
    d.returnValue = "no"; d.onclose = () => done(d.returnValue === "yes");
    d.showModal();
  });
  const send = async (form, data) => {
    const resp = await fetch(form.action, { method: "POST", body: new URLSearchParams(data), headers: { "Dsas-Part": "act" } });
    if (resp.redirected || resp.status === 401) { location.reload(); return new Promise(() => {}); } // to the log-in
    if (!resp.headers.get("Content-Type")?.startsWith("application/json")) throw new Error("the server answered " + resp.status);
    const answer = await resp.json();
    if (answer.error) throw new Error(answer.error); // who may not do it
    return answer;
  };
  document.addEventListener("submit", async (ev) => {
    const form = ev.target;
    if (form.id === "search") { ev.preventDefault(); return; }
    if (form.method !== "post" || form.hasAttribute("data-plain") || !live.contains(form)) return;
    ev.preventDefault();
    const out = form.querySelector(".said-here"), button = ev.submitter, data = new FormData(form, button);
    out?.replaceChildren();
    const buttons = [...form.querySelectorAll("button")], name = button?.textContent;
    const working = (on) => {
      for (const b of buttons) b.disabled = on;
      if (button) button.textContent = on ? "working…" : name;
    };
    working(true);
    try {
      let answer = await send(form, data);
      if (answer.sure) {
        working(false);
        if (!(await ask(answer.sure))) return;
        working(true);
        data.set("sure", "1");
        answer = await send(form, data);
      }
      if (answer.go) { location.assign(answer.go); return; }
      if (answer.bad && out) tell(out, answer); else toast(answer);
      if (!answer.bad) { form.reset(); if (form.id === "add-form" || form.id === "change-form") form.closest("details").open = false; }
      soon();
    } catch (err) {
      const answer = { text: "Not done, or not known: " + (err instanceof TypeError ? "the server does not answer." : err.message), bad: true };
      if (out) tell(out, answer); else toast(answer);
    } finally {
      working(false);
      count();
    }
  });

  // --- following ----------------------------------------------------------------

  // One refresh at a time, and the pause after one is four times what it took:
  // many pages and many nodes slow the pages down and not the server.
  let busy = false, again = false, timer = null, pause = 0, tag = "";
  const soon = (ms = 100) => {
    if ($("error")) return; // there is nothing to follow
    if (busy || document.hidden) { again = true; return; }
    timer ??= setTimeout(() => { timer = null; refresh(); }, Math.max(ms, pause - performance.now()));
  };
  const refresh = async () => {
    busy = true; again = false;
    const start = performance.now();
    try {
      const resp = await fetch(location.pathname + location.search, { headers: { "Dsas-Part": "live", "If-None-Match": tag }, cache: "no-store" });
      if (resp.redirected || resp.status === 401 || resp.status === 404) { location.reload(); return; }
      if (resp.ok) {
        tag = resp.headers.get("ETag") ?? "";
        const copy = document.createElement("template"); copy.innerHTML = await resp.text();
        morphChildren(live, copy.content); arrange();
      }
    } catch { /* the server is away: the event source says so and tries again */ }
    finally {
      busy = false;
      pause = performance.now() + Math.max(250, 4 * (performance.now() - start));
      if (again) soon();
    }
  };
  const arrange = () => {
    each("[data-js]", (e) => { e.hidden = false; }, live); each("[data-nojs]", (e) => { e.hidden = true; }, live);
    readClock(); ages(); filter(); count();
  };

  // A browser has six connections to a server, so a page that nobody sees
  // gives its own back.
  const pulse = $("pulse");
  let source = null;
  const mood = (cls, text) => { pulse.className = "pulse " + cls; if (pulse.textContent !== text) pulse.textContent = text; };
  const follow = () => {
    if (source || document.hidden) return;
    source = new EventSource("/live");
    source.onopen = () => { mood("", "live"); soon(); };
    source.onmessage = () => soon();
    source.onerror = () => {
      mood("off", "server away");
      if (source.readyState !== EventSource.CLOSED) return; // it tries again itself
      source = null; // refused: logged out, or a proxy in between
      setTimeout(() => { soon(); follow(); }, 5000);
    };
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { source?.close(); source = null; } else { follow(); soon(); }
  });
  addEventListener("pagehide", () => { source?.close(); source = null; });
  addEventListener("pageshow", (ev) => { if (ev.persisted) { follow(); soon(); } });

  pulse.hidden = false;
  each(".said", closable);
  arrange();
  setInterval(() => { if (!document.hidden) ages(); }, 1000);
  follow();
})();
