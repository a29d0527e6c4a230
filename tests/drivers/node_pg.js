// node-postgres through both ports. The tests run it with HOST, CA and NODE_PATH in the environment.
'use strict';
const assert = require('assert');
const fs = require('fs');
const { Client } = require('pg');

const settings = (port) => ({
  host: process.env.HOST, port, user: 'app', password: 'app', database: 'app', connectionTimeoutMillis: 10000,
  ssl: { ca: fs.readFileSync(process.env.CA, 'utf8'), servername: 'localhost' },
});

async function connect(port) {
  const client = new Client(settings(port));
  await client.connect();
  return client;
}

// The driver's own COPY is an extra package; its hooks are in the core.
function copy(client, text, rows) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    client.query({
      submit: (connection) => connection.query(text),
      handleError: reject,
      handleRowDescription() {}, handleDataRow() {}, handlePortalSuspended() {}, handleEmptyQuery() {},
      handleCopyInResponse(connection) {
        rows.forEach((row) => connection.sendCopyFromChunk(Buffer.from(row)));
        connection.endCopyFrom();
      },
      // The chunk lies in the driver's read buffer, which is used again.
      handleCopyData: (message) => chunks.push(Buffer.from(message.chunk)),
      handleCommandComplete() {},
      handleReadyForQuery: () => resolve(Buffer.concat(chunks).toString()),
    });
  });
}

async function cancelled(client, port) {
  const text = 'SELECT pg_sleep(30)';
  const { Query } = require('pg');
  let done = false;
  const query = new Query(text);
  const ended = new Promise((resolve) => {
    query.on('error', (error) => { done = true; resolve(error); });
    query.on('end', () => { done = true; resolve(null); });
  });
  client.query(query);
  while (!done) {
    const other = new Client({ ...settings(port), ssl: false });
    other.connection.on('error', () => {});
    const closed = new Promise((resolve) => other.connection.once('end', resolve));
    other.cancel(client, query);
    // Delivered, or it might hit what comes next.
    await closed;
  }
  const error = await ended;
  assert.strictEqual(error && error.code, '57014');
}

async function reads(client, port) {
  assert(client.connection.stream.encrypted, 'no TLS');
  assert.strictEqual((await client.query('SELECT $1::int + 1 AS n', [41])).rows[0].n, 42);
  for (let number = 0; number < 20; number++) {
    const answer = await client.query({ name: 'twice', text: 'SELECT $1::int * 2 AS n', values: [number] });
    assert.strictEqual(answer.rows[0].n, number * 2);
  }
  const many = await Promise.all([...Array(200).keys()].map((n) => client.query('SELECT $1::int AS n', [n])));
  assert.deepStrictEqual(many.map((answer) => answer.rows[0].n), [...Array(200).keys()]);
  assert.strictEqual((await client.query('SELECT 1; SELECT 2')).length, 2);
  const out = await copy(client, 'COPY (SELECT g FROM generate_series(1, 10000) g) TO STDOUT', []);
  assert.strictEqual(out.trim().split('\n').length, 10000);
  await cancelled(client, port);
  await assert.rejects(client.query('SELECT 1 / 0'), { code: '22012' });
  assert.strictEqual((await client.query("SELECT 'on we go' AS s")).rows[0].s, 'on we go');
}

async function main() {
  const client = await connect(6432);
  await reads(client, 6432);
  await client.query('CREATE TEMP TABLE t (a int, b text)');
  await copy(client, 'COPY t FROM STDIN', [...Array(1000).keys()].map((n) => `${n}\tü\n`));
  assert.strictEqual((await client.query('SELECT count(*)::int AS n FROM t')).rows[0].n, 1000);
  const notices = [];
  client.on('notice', (notice) => notices.push(notice.message));
  await client.query("DO $$ BEGIN RAISE NOTICE 'hear me'; END $$");
  assert.deepStrictEqual(notices, ['hear me']);
  const heard = new Promise((resolve) => client.on('notification', (message) => resolve(message.payload)));
  await client.query('LISTEN node_pg');
  const other = await connect(6432);
  await other.query("NOTIFY node_pg, 'here'");
  await other.end();
  assert.strictEqual(await heard, 'here');
  await client.end();

  const reader = await connect(6433);
  await reads(reader, 6433);
  await assert.rejects(reader.query('CREATE TABLE never (a int)'), { code: '25006' });
  await reader.end();
  console.log('done');
}

main().catch((error) => { console.error(error); process.exit(1); });
