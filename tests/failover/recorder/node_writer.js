// node-postgres as a writer of the recorder; tests/failover/recorder/mod.rs says what all of them do, and how they are told.
'use strict';
const fs = require('fs');
const { Client } = require('pg');

const { PORT, CA, OUT, STOP } = process.env;
const HOSTS = process.env.HOSTS.split(',');
const PAUSE = Number(process.env.PAUSE_MS);
const END = Date.now() + Number(process.env.LIMIT_S) * 1000;
const INSERT = 'INSERT INTO recorded (id) VALUES ($1)';
const out = fs.openSync(OUT, 'w');

const now = () => Math.round((performance.timeOrigin + performance.now()) * 1000);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const goesOn = () => Date.now() < END && !fs.existsSync(STOP);
const line = (...fields) => fs.writeSync(out, `${fields.join('\t')}\n`);

// What is no error of the server's has a code of the operating system, if any.
function told(error) {
  const code = error.severity ? error.code : '-';
  return [code, `${error.name}: ${error.message}`.replace(/[\t\n]/g, ' ')];
}

async function connect(writer, isPipelined) {
  const client = new Client({
    host: HOSTS[writer % HOSTS.length], port: Number(PORT), user: 'app', password: 'app', database: 'app', connectionTimeoutMillis: 60000,
    ssl: { ca: fs.readFileSync(CA, 'utf8'), servername: 'localhost' }, application_name: 'recorder',
    pipeline: isPipelined,
  });
  const connection = { client, isDead: false };
  client.on('error', () => { connection.isDead = true; });
  client.on('end', () => { connection.isDead = true; });
  await client.connect();
  return connection;
}

// Each writes ids and gives back what came of them: one outcome for all, or one for each.
const KINDS = [
  ['single', 1, async ({ client }, ids, step) => {
    step('autocommit');
    await client.query(`INSERT INTO recorded (id) VALUES (${ids[0]})`);
  }],
  ['transaction', 2, async ({ client }, ids, step) => {
    step('begin');
    await client.query('BEGIN');
    for (const id of ids) {
      step('statement');
      await client.query({ name: 'insert', text: INSERT, values: [id] });
      await sleep(PAUSE / 4);
    }
    step('commit');
    if ((await client.query('COMMIT')).command !== 'COMMIT') {
      throw new Error('COMMIT was answered with ROLLBACK');
    }
  }],
  ['prepared', 1, async ({ client }, ids, step) => {
    step('autocommit');
    await client.query({ name: 'insert', text: INSERT, values: ids });
  }],
  ['pipelined', 3, ({ client }, ids, step) => {
    // One after the other for a client that does not pipeline.
    step('autocommit');
    return Promise.allSettled(ids.map((id) => client.query({ name: 'insert', text: INSERT, values: [id] })));
  }],
];

const isFatal = (error) => ['FATAL', 'PANIC'].includes(error.severity);

async function afterError(connection, phase, error) {
  if (isFatal(error)) connection.isDead = true;
  if (!connection.isDead && phase !== 'autocommit') {
    await connection.client.query('ROLLBACK').catch((second) => { connection.isDead ||= isFatal(second); });
  }
}

async function write(writer) {
  let connection = null;
  let next = writer * 2 ** 32;
  for (let turn = writer; goesOn(); turn++) {
    let began = now();
    if (!connection) {
      try {
        connection = await connect(writer, writer % 2 === 1);
        line('login', began, now(), writer, 'done', '-', '');
      } catch (error) {
        line('login', began, now(), writer, 'error', ...told(error));
        await sleep(PAUSE);
        continue;
      }
    }
    const [kind, count, act] = KINDS[turn % KINDS.length];
    const ids = [...Array(count).keys()].map((number) => next + 1 + number);
    next += count;
    let phase = '';
    began = now();
    const results = []; // [ids, error]
    try {
      const settled = await act(connection, ids, (step) => { phase = step; });
      if (settled) settled.forEach(({ reason }, index) => results.push([[ids[index]], reason]));
      else results.push([ids, null]);
    } catch (error) {
      results.push([ids, error]);
    }
    const ended = now();
    for (const [, error] of results) if (error) await afterError(connection, phase, error);
    for (const [which, error] of results) {
      const outcome = !error ? 'done' : connection.isDead ? 'dead' : 'error';
      line('write', began, ended, writer, outcome, kind, which.join(','), phase, ...(error ? told(error) : ['-', '']));
    }
    if (connection.isDead) {
      connection.client.end().catch(() => {});
      connection = null;
    }
    await sleep(PAUSE);
  }
  if (connection) await connection.client.end().catch(() => {});
}

Promise.all(process.env.WRITERS.split(',').map((number) => write(Number(number))))
  .then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
