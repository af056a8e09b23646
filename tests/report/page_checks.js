// What the tests ask of an open report: `w` is the window that shows it.
"use strict";

function colour(text) {
  const [r, g, b, alpha = 1] = text.match(/[\d.]+/g).map(Number);
  return [r, g, b, alpha];
}

function over(top, below) {
  return [0, 1, 2].map((n) => top[n] * top[3] + below[n] * (1 - top[3])).concat(1);
}

function luminance(rgb) {
  const [r, g, b] = rgb.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

function background(w, element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(colour(w.getComputedStyle(e).backgroundColor));
  return layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}

// Texts whose contrast against what lies behind them is under 4.5, and the lowest contrast of all.
function faint(w) {
  const found = [];
  let lowest = 21;
  const walker = w.document.createTreeWalker(w.document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = w.getComputedStyle(element);
    const behind = background(w, element);
    const ink = element instanceof w.SVGElement ? style.fill : style.color;
    const ratio = contrast(over(colour(ink), behind), behind);
    lowest = Math.min(lowest, ratio);
    if (ratio < 4.5) found.push(`${walker.currentNode.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return { found, lowest };
}

// Figures' lines and areas need 3:1 at least; grid lines are ornament.
function faintSeries(w) {
  const behind = background(w, w.document.body);
  const style = w.getComputedStyle(w.document.documentElement);
  const probe = w.document.createElement("i");
  w.document.body.append(probe);
  const found = [0, 1, 2, 3, 4, 5].filter((n) => {
    probe.style.color = style.getPropertyValue(`--s${n}`);
    return contrast(colour(w.getComputedStyle(probe).color), behind) < 3;
  });
  probe.remove();
  return found;
}

function outline(w) {
  const levels = [...w.document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((e) => Number(e.tagName[1]));
  const jumps = levels.filter((level, n) => (n ? level > levels[n - 1] + 1 : level !== 1));
  return { tops: levels.filter((level) => level === 1).length, jumps };
}

// What is folded when the page opens, whether a link opens what it leads to, and where the contents are at the page's end.
function folding(w) {
  const d = w.document;
  const folds = [...d.querySelectorAll("details.fold")];
  const closed = folds.filter((e) => !e.open).length;
  d.querySelector('nav a[href$="-figures"]').click();
  const opened = folds.filter((e) => e.open).map((e) => e.querySelector("summary").textContent);
  folds.forEach((e) => { e.open = true; });
  w.scrollTo(0, d.documentElement.scrollHeight);
  const { top, bottom } = d.querySelector("nav > ul").getBoundingClientRect();
  const ends = { inView: top >= 0 && bottom <= w.innerHeight };
  w.scrollTo(0, 0);
  const answer = d.querySelector("#head dd").getBoundingClientRect();
  const chart = d.querySelector("#head svg[role]").getBoundingClientRect();
  return { folds: folds.length, closed, opened, ...ends, answerEnds: answer.bottom, chartBegins: chart.top };
}

function checks(w) {
  const d = w.document;
  const root = d.documentElement;
  const all = (selector) => [...d.querySelectorAll(selector)];
  const folded = folding(w);
  all("details").forEach((e) => { e.open = true; });
  const identifiers = all("[id]").map((e) => e.id);
  return {
    folded,
    window: root.clientWidth,
    width: root.scrollWidth,
    // what stands out of the window though nothing scrolls it
    wide: all("body *").filter((e) => !e.closest(".scroll, pre, svg, .skip") && e.getBoundingClientRect().right > root.clientWidth + 1).length,
    scrolling: all(".scroll").filter((e) => e.scrollWidth > e.clientWidth).length,
    unreachable: all(".scroll, pre").filter((e) => e.tabIndex !== 0 || !e.getAttribute("aria-label")).length,
    asked: w.performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:")),
    page: Math.round(255 * luminance(background(w, d.body))),
    faint: faint(w),
    faintSeries: faintSeries(w),
    outline: outline(w),
    landmarks: ["header", "nav", "main"].map((name) => all(name).length),
    loose: all("body > *").map((e) => e.tagName.toLowerCase()).filter((n) => !["header", "main", "script"].includes(n)),
    unnamed: all('img:not([alt]), img[alt=""], svg[role="img"]:not([aria-label]), svg:not([role="img"]):not([aria-hidden])').length,
    images: all('img, svg[role="img"]').length,
    tables: all("table").length,
    captions: all("table > caption").filter((e) => e.textContent.trim()).length,
    unscoped: all("th:not([scope])").length,
    headless: all("tbody tr, tfoot tr").filter((e) => e.cells[0].tagName !== "TH").length,
    repeated: identifiers.filter((id, n) => identifiers.indexOf(id) !== n),
    dangling: all('a[href^="#"]').map((e) => e.getAttribute("href").slice(1)).filter((id) => !d.getElementById(id)),
    anchors: all("nav a").map((e) => e.getAttribute("href")),
    sorting: sorting(w, "Baselines."),
  };
}

// Presses the buttons of one table, and says what the rows' heads are after each press.
function sorting(w, caption) {
  const table = [...w.document.querySelectorAll("table")].find((e) => e.caption.textContent.startsWith(caption));
  const heads = [...table.tHead.rows[0].cells];
  const rows = () => [...table.rows].slice(1).map((row) => row.cells[0].textContent);
  const found = { buttons: table.querySelectorAll("thead th > button").length, orders: [], focused: 0 };
  for (const [column, presses] of [[1, 3], [0, 2]]) {
    const button = heads[column].querySelector("button");
    button.focus();
    found.focused += w.document.activeElement === button ? 1 : 0;
    for (let n = 0; n < presses; n += 1) {
      button.click();
      found.orders.push([heads.map((head) => head.getAttribute("aria-sort")), rows()]);
    }
  }
  return found;
}
