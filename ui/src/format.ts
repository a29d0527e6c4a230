// Numbers and times in words.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

export function bytes(value: number): string {
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${few(value)} ${UNITS[unit]}`;
}

/** At most three digits that count. */
export function few(value: number): string {
  if (value >= 1e6) return `${few(value / 1e6)} M`;
  if (value >= 1e4) return `${few(value / 1e3)} k`;
  if (value >= 100) return String(Math.round(value));
  if (value >= 10) return trim(value.toFixed(1));
  return trim(value.toFixed(2));
}

function trim(text: string): string {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

export function millis(value: number): string {
  return value >= 1000 ? `${few(value / 1000)} s` : `${few(value)} ms`;
}

export function seconds(value: number): string {
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-CA", { year: "numeric", month: "2-digit", day: "2-digit" });

export function time(at: number): string {
  return clock.format(at);
}

export function date(at: number): string {
  return day.format(at);
}

/** With the date if it is not of today. */
export function moment(at: number): string {
  return date(at) === date(Date.now()) ? time(at) : `${date(at)} ${time(at)}`;
}

/** `1 session`, `2 sessions`. */
export function count(number: number, one: string, several = `${one}s`): string {
  return `${number} ${number === 1 ? one : several}`;
}

/** `a`, `a and b`, `a, b and c`. */
export function list(names: string[]): string {
  if (names.length < 2) return names.join("");
  return `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`;
}
