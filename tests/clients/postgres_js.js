// postgres.js, which is a pool.
'use strict';
const assert = require('assert');
const { pipeline } = require('stream/promises');
const { Readable } = require('stream');
const postgres = require('postgres');
const h = require('./harness.js');

const newPool = (max = h.CONNECTIONS) => postgres({ ...h.SETTINGS, ssl: h.SSL, max, connect_timeout: 20, onnotice() {} });

async function connected(run) {
  const sql = newPool(1);
  try {
    return await run(sql);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

const value = (sql) => async (query) => Number(Object.values((await sql.unsafe(query))[0])[0]);
const tls = () => connected(async (sql) => assert.strictEqual(await value(sql)('SELECT 1'), 1));

// It sends one request for a statement, and no second one: so the statement has to run by then.
const cancel = () => connected(async (sql) => {
  const running = sql.unsafe(h.SLEEP).execute();
  await h.pause(1000);
  await h.cancelled(running, async () => { await running.cancel(); });
  assert.strictEqual(await value(sql)('SELECT 1'), 1);
});

const copy = () => connected(async (sql) => {
  await sql`TRUNCATE copied`;
  await pipeline(Readable.from(h.LINES), await sql.unsafe(h.COPY_IN).writable());
  const chunks = [];
  for await (const chunk of await sql.unsafe(h.COPY_OUT).readable()) chunks.push(Buffer.from(chunk));
  assert.strictEqual(Buffer.concat(chunks).toString(), h.LINES.join(''));
});

const prepared = () => connected((one) => connected(async (two) => {
  for (let number = 0; number < h.TIMES; number++) {
    assert.strictEqual((await one`SELECT ${number}::int AS sum`)[0].sum, number);
    assert.strictEqual((await two`SELECT ${number}::int + 1 AS sum`)[0].sum, number + 1);
  }
}));

const pooled = () => connected(async (sql) => {
  const pool = newPool();
  await h.counted(value(sql), () => pool.begin((mine) => mine.unsafe(h.ADD)));
  await pool.end();
});

async function writes() {
  const pool = newPool();
  await h.write((writer, number) => pool`INSERT INTO written VALUES (${writer}, ${number})`);
  await pool.end();
}

h.main('postgres',
  { tls, binding: h.cannot('not offered'), cancel, copy, prepared, pool: pooled }, writes);
