// Small pieces that several sections use.

import { h, type Child, type Props, type VNode } from "./dom";
import type { Status } from "./types";

const MARKS: Record<Status, string> = { UP: "●", DOWN: "✖", DRAIN: "◐", MAINT: "■", INI: "○" };

/** HAProxy's word with a mark: never the colour alone. */
export function status(of: Status): VNode {
  return h("span", { class: `status ${of.toLowerCase()}` }, h("span", { "aria-hidden": "true" }, `${MARKS[of]} `), of);
}

export function section(id: string, title: string, props: Props | null, ...children: Child[]): VNode {
  return h("section", { key: id, id, "aria-labelledby": `${id}-title`, ...props }, h("h2", { id: `${id}-title` }, title), ...children);
}

export interface Column<T> { title: string; isNumber?: boolean; cell: (row: T) => Child }

export function table<T>(caption: string, columns: Column<T>[], rows: T[], key: (row: T) => string, empty: string): VNode {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", null,
      h("caption", { class: "hidden" }, caption),
      h("thead", null, h("tr", null, columns.map((column) => h("th", { scope: "col", class: column.isNumber ? "number" : null }, column.title)))),
      h("tbody", null, rows.map((row) => h("tr", { key: key(row) },
        columns.map((column, index) => index === 0
          ? h("th", { scope: "row", class: column.isNumber ? "number" : null }, column.cell(row))
          : h("td", { class: column.isNumber ? "number" : null }, column.cell(row))))))));
}

export function filter(id: string, label: string, value: string, set: (value: string) => void): VNode {
  return h("label", { class: "filter" }, `${label} `, h("input", {
    id, type: "search", value, spellcheck: "false", autocomplete: "off", maxlength: "200",
    oninput: (event: Event) => set((event.target as HTMLInputElement).value),
  }));
}

/** Each word occurs somewhere in the text. */
export function matches(words: string, ...text: (string | number | null)[]): boolean {
  const all = text.join(" ").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => all.includes(word));
}
