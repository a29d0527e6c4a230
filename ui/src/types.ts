// What the router answers; docs/http.md has the meaning of each field.

export interface OrderedBy { router: string; operator: string }

export interface Hold {
  route: string; cluster: string; clients: number; kind: string; cause: string; by: OrderedBy | null;
  since_ms: number; held_s: number; until_ms: number; left_s: number; ended_by: string;
}

export interface RouterState {
  state: string; ready: boolean; reason: string | null; sessions: number; process_id: number; version: string;
  disabled_routes: string[]; holds: Hold[];
}

export interface Cluster {
  name: string; leader: { member: string; timeline: number; named_by: string } | null; no_leader: string | null;
  members: string[]; source: { reachable: boolean; error: string | null; disagreement: string | null };
  system_identifier: string | null; paused: boolean; version: number;
}

export type Status = "UP" | "DOWN" | "DRAIN" | "MAINT" | "INI";

export interface Member {
  name: string; cluster: string; host: string; port: number; role: string | null; role_shown: string | null; leader: boolean; state: string;
  timeline: number | null; lag: number | null; lag_seconds: number | null; tags: Record<string, unknown>;
  status: Status; check: { status: string; text: string | null; in_a_row: number; age_ms: number | null };
  admin: string; weight: number; zone: string | null; sessions: number; server_connections: number | null;
  routes: { route: string; fit: boolean; reason: string }[];
}

export interface Route {
  name: string; cluster: string | null; access: string | null; admin: string; paused_s: number | null;
  hold: Hold | null; pool: string; members: string[]; sessions: number;
}

export interface Pool {
  route: string; cluster: string; user: string; database: string; max_connections: number; reserve: number;
  waiting: number; longest_wait_ms: number; router_process_id: number;
  members: { member: string; idle: number; leased: number; opening: number; pinned: number; pins: Record<string, number> }[];
}

export interface Pools { left_out: number; pools: Pool[] }

export interface Switchover {
  cluster: string; leader: string; candidate: string; is_committed: boolean; is_over: boolean; has_succeeded: boolean;
  run_by: OrderedBy | null; steps: string[]; open_sessions: string[];
}

export interface Problem {
  severity: "degraded" | "no service"; rank: "no writes" | "down" | "warning"; key: string; what: string; why: string;
  remedy: string; since_ms: number | null;
}

export interface Health { result: string; problems: Problem[] }

export interface Plan {
  cluster: string; leader: string; candidate: string; peers: string[];
  sessions: { transactions: number; [key: string]: unknown };
  direct: { from: string; application: string; connections: number }[]; remarks: string[]; problems: string[];
}

export interface Happened {
  number: number; time_ms: number; level: "info" | "warn" | "error"; text: string; event: string;
  [field: string]: unknown;
}

export type Values = Record<string, (number | null)[]>;

export interface History {
  interval_ms: number; number: number; process_id: number; left_out: number; time_ms: number[]; router: Values;
  routes: { route: string; series: Values }[]; members: { cluster: string; member: string; series: Values }[];
}

export interface Session {
  id: number; client: string; user: string; database: string; cluster: string; route: string; member: string;
  process_id: number; state: string; phase: string; pins: string[]; held_s: number | null; waiting_s: number | null;
  age_s: number; bytes_up: number; bytes_down: number; transactions: number; tls: string | null;
  ending: string | null; router_process_id: number;
}

export interface Listener {
  name: string; protocol: string; address: string | null; port: number | null; socket: string | null;
  route: string | null; cluster: string | null; access: string | null; targets: string | null; pool: string | null;
  tls: string; state: string; clients: number | null; max_clients: number | null;
}

export interface Certificate {
  used_for: string; kind: string; key: string; file: string; cluster: string | null; listeners: string[]; subject: string;
  issuer: string; names: string[]; not_before_ms: number; not_after_ms: number; days_left: number;
}

export interface Setting {
  key: string; value: string | null; default: string | null; source: string; file: string | null; line: number | null;
  after_restart: string | null;
}

export interface Limit { name: string; scope: string; key: string | null; limit: number | null; used: number | null; unit: string }

export interface Peer {
  name: string; host: string; port: number; state: string; error: string | null; answer_ms: number | null;
  protocol_version: number | null;
}
