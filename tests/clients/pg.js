// node-postgres with pg-pool.
'use strict';
const assert = require('assert');
const { finished, pipeline } = require('stream/promises');
const { Readable } = require('stream');
const { Client, Pool, Query } = require('pg');
const { from, to } = require('pg-copy-streams');
const h = require('./harness.js');

const settings = { ...h.SETTINGS, ssl: h.SSL, connectionTimeoutMillis: 20000 };

async function connected(run, more = {}) {
  const client = new Client({ ...settings, ...more });
  await client.connect();
  try {
    return await run(client);
  } finally {
    await client.end();
  }
}

const value = (client) => async (query) => Number(Object.values((await client.query(query)).rows[0])[0]);

const tls = () => connected(async (client) => {
  assert.ok(client.connection.stream.authorized);
  assert.strictEqual(await value(client)('SELECT 1'), 1);
});

const binding = () => connected(async (client) => {
  assert.strictEqual(await value(client)('SELECT 1'), 1);
  return 'with `enableChannelBinding`';
}, { enableChannelBinding: true });

// Its request is sent in clear, over a connection of its own.
const cancel = () => connected(async (client) => {
  const query = new Query(h.SLEEP);
  const running = new Promise((resolve, reject) => { query.on('error', reject); query.on('end', resolve); });
  client.query(query);
  await h.cancelled(running, async () => {
    const other = new Client({ ...settings, ssl: false });
    other.connection.on('error', () => {});
    const closed = new Promise((resolve) => other.connection.once('end', resolve));
    other.cancel(client, query);
    await closed;
  });
  assert.strictEqual(await value(client)('SELECT 1'), 1);
});

const copy = () => connected(async (client) => {
  await client.query('TRUNCATE copied');
  await pipeline(Readable.from(h.LINES), client.query(from(h.COPY_IN)));
  const chunks = [];
  const out = client.query(to(h.COPY_OUT));
  out.on('data', (chunk) => chunks.push(Buffer.from(chunk)));
  await finished(out);
  assert.strictEqual(Buffer.concat(chunks).toString(), h.LINES.join(''));
  return 'with pg-copy-streams';
});

const prepared = () => connected((one) => connected(async (two) => {
  for (let number = 0; number < h.TIMES; number++) {
    for (const [add, client] of [one, two].entries()) {
      const answer = await client.query({ name: 'mine', text: `SELECT $1::int + ${add} AS sum`, values: [number] });
      assert.strictEqual(answer.rows[0].sum, number + add);
    }
  }
}));

const newPool = () => new Pool({ ...settings, max: h.CONNECTIONS });

const pooled = () => connected(async (client) => {
  const pool = newPool();
  await h.counted(value(client), async () => {
    const mine = await pool.connect();
    await mine.query('BEGIN');
    await mine.query(h.ADD);
    await mine.query('COMMIT');
    mine.release();
  });
  await pool.end();
});

async function writes() {
  const pool = newPool();
  pool.on('error', () => {});
  await h.write((writer, number) => pool.query('INSERT INTO written VALUES ($1, $2)', [writer, number]));
  await pool.end();
}

h.main('pg', { tls, binding, cancel, copy, prepared, pool: pooled }, writes);
