// Requests to the router. The token is sent as its API takes it, and is in no cookie, address or
// storage.

import { state } from "./state";

export function headers(): Record<string, string> {
  return state.token === null ? {} : { Authorization: `Bearer ${state.token}` };
}

/** `missing`: the processes of the router whose part the answer lacks. */
export interface Answer<T> { value: T | null; status: number; error: string; total: number | null; missing: string }

export async function ask<T>(path: string, method = "GET", body?: unknown): Promise<Answer<T>> {
  const init: RequestInit = { method, headers: headers(), cache: "no-store", credentials: "omit" };
  if (body !== undefined) init.body = JSON.stringify(body);
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch {
    return { value: null, status: 0, error: "the router does not answer", total: null, missing: "" };
  }
  const answer: unknown = await response.json().catch(() => null);
  const total = response.headers.get("X-Trunkline-Total");
  const missing = response.headers.get("X-Trunkline-Incomplete") ?? "";
  if (response.ok) return { value: answer as T, status: response.status, error: "", total: total === null ? null : Number(total), missing };
  const said = (answer ?? {}) as { error?: string; hint?: string; faults?: string[] };
  const words = said.error ?? (said.faults ? said.faults.join("; ") : `the router answered with status ${response.status}`);
  return { value: null, status: response.status, error: said.hint ? `${words}: ${said.hint}` : words, total: null, missing };
}

export const part = encodeURIComponent;
