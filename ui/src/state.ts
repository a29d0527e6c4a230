// All that the page knows. Everything is forgotten when the page is closed or loaded again.

import type {
  Certificate, Cluster, Happened, History, Limit, Listener, Member, Peer, Pools, Route, RouterState, Session, Setting,
  Switchover,
} from "./types";
import type { Child } from "./dom";

export type Link = "connecting" | "live" | "lost" | "token" | "forbidden";

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
  pools: Pools;
  switchover: Switchover | null;
  events: Happened[];
  history: History | null;
  sessions: Session[];
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
  link: "connecting", why: "", heard: 0, token: null, hasToken: false, tokenError: null, processId: null, version: "",
  router: null, clusters: [], members: [], routes: [], pools: { left_out: 0, pools: [] }, switchover: null, events: [],
  history: null, sessions: [], sessionsTotal: 0, sessionsError: null, listeners: null, certificates: null, settings: null,
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
