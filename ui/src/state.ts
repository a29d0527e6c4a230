// All that the page knows. Everything is forgotten when the page is closed or loaded again.

import type {
  Certificate, Cluster, Happened, Health, History, Limit, Listener, Member, Peer, Pools, Route, RouterState, Session, Setting,
  Switchover,
} from "./types";
import type { Child } from "./dom";

/** `ended`: the router has given the place of this page to somebody with the token. */
export type Link = "connecting" | "live" | "lost" | "ended" | "token" | "forbidden";

export interface Action {
  label: string;
  isDangerous?: boolean;
  run: () => Promise<string | null>;
}

export interface Dialog {
  title: string;
  body: () => Child;
  actions: Action[];
  error: string | null;
  isBusy: boolean;
}

export interface State {
  link: Link;
  /** Why there is no connection. */
  why: string;
  /** When the last message came. */
  heard: number;
  /** When the page connects again. */
  nextTry: number;
  token: string | null;
  /** The router has accepted the token. */
  hasToken: boolean;
  tokenError: string | null;
  processId: number | null;
  version: string;
  router: RouterState | null;
  clusters: Cluster[];
  members: Member[];
  routes: Route[];
  pools: Pools | null;
  health: Health | null;
  switchover: Switchover | null;
  events: Happened[];
  history: History | null;
  /** Null: they have not been asked for yet. */
  sessions: Session[] | null;
  sessionsTotal: number;
  sessionsError: string | null;
  listeners: Listener[] | null;
  certificates: Certificate[] | null;
  settings: Setting[] | null;
  limits: Limit[] | null;
  peers: Peer[] | null;
  sessionFilter: string;
  eventFilter: string;
  settingFilter: string;
  allSettings: boolean;
  /** Which point of the charts is looked at, from the newest on; null: the newest. */
  cursor: number | null;
  dialog: Dialog | null;
  notice: { text: string; isError: boolean } | null;
}

export const state: State = {
  link: "connecting", why: "", heard: 0, nextTry: 0, token: null, hasToken: false, tokenError: null, processId: null, version: "",
  router: null, clusters: [], members: [], routes: [], pools: null, health: null, switchover: null, events: [],
  history: null, sessions: null, sessionsTotal: 0, sessionsError: null, listeners: null, certificates: null, settings: null,
  limits: null, peers: null, sessionFilter: "", eventFilter: "", settingFilter: "", allSettings: false, cursor: null,
  dialog: null, notice: null,
};

let draw: (() => void) | null = null;
let isDue = false;

export function drawWith(render: () => void): void {
  draw = render;
  changed();
}

/** Something is different: the page is drawn again soon. */
export function changed(): void {
  if (isDue || !draw) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw?.();
  });
}
