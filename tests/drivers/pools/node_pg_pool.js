// node-postgres with its pool and named statements. Run with HOST, PORT, SCHEMA, TASKS and NODE_PATH; see
// tests/it/pooling/drivers.rs.
'use strict';
const assert = require('assert');
const { Pool } = require('pg');

const { HOST, PORT, SCHEMA } = process.env;
const TASKS = Number(process.env.TASKS);

const pool = new Pool({ host: HOST, port: Number(PORT), user: 'app', password: 'app', database: 'app', max: 8 });
let number = 0;

async function take() {
  const client = await pool.connect();
  if (!client.tenant) {
    client.tenant = `${SCHEMA} ${++number}`;
    await client.query("SELECT set_config('search_path', $1, false), set_config('app.tenant', $2, false)", [SCHEMA, client.tenant]);
  }
  return client;
}

async function own(client) {
  const { rows } = await client.query({
    name: 'own', rowMode: 'array',
    text: "SELECT current_setting('app.tenant'), (SELECT name FROM place), current_setting('statement_timeout')",
  });
  assert.deepStrictEqual(rows[0], [client.tenant, SCHEMA, '0']);
}

async function transfer(client, task) {
  const [first, second] = [task % 8 + 1, (task + 3) % 8 + 1].sort((a, b) => a - b);
  await client.query('BEGIN');
  const locked = await client.query({
    name: 'lock', text: 'SELECT id FROM account WHERE id IN ($1, $2) ORDER BY id FOR UPDATE', values: [first, second],
  });
  assert.deepStrictEqual(locked.rows.map((row) => row.id), [first, second]);
  const add = (amount, id) => client.query({
    name: 'add', text: 'UPDATE account SET amount = amount + $1 WHERE id = $2', values: [amount, id],
  });
  await add(-1, first);
  await client.query('SAVEPOINT a');
  await assert.rejects(add(-1000000, first), { code: '23514' });
  await assert.rejects(add(1, first), { code: '25P02' });
  await client.query('ROLLBACK TO a');
  await add(1, second);
  await client.query('COMMIT');
}

async function errors(client, task) {
  await client.query('BEGIN');
  await client.query({ name: 'line', text: 'INSERT INTO line VALUES ($1, $2)', values: [task, 'of a transaction that fails'] });
  await assert.rejects(
    client.query({ name: 'account', text: 'INSERT INTO account VALUES ($1, $2)', values: [1, 1] }), { code: '23505' });
  await client.query('ROLLBACK');
  await client.query("BEGIN; SET LOCAL statement_timeout = '20ms'");
  await assert.rejects(client.query({ name: 'sleep', text: 'SELECT pg_sleep($1)', values: [30] }), { code: '57014' });
  assert.strictEqual((await client.query('COMMIT')).command, 'ROLLBACK');
  // A statement that cannot be prepared leaves no name behind.
  for (let i = 0; i < 2; i++) {
    await assert.rejects(client.query({ name: 'wrong', text: 'SELECT nothing_of_the_kind' }), { code: '42703' });
  }
}

async function lines(client, task) {
  const texts = [...Array(20).keys()].map((line) => `${line} ü`);
  await client.query({
    name: 'lines', text: 'INSERT INTO line SELECT $1, t FROM unnest($2::text[]) t', values: [task, texts],
  });
  const found = await client.query({ name: 'found', text: 'SELECT text FROM line WHERE task = $1', values: [task] });
  assert.deepStrictEqual(found.rows.map((row) => row.text).sort(), [...texts].sort());
}

async function work(task) {
  for (const part of [transfer, errors, lines, transfer]) {
    const client = await take();
    try {
      await own(client);
      // Many requests are queued at once.
      const answers = await Promise.all([...Array(10).keys()].map((value) => client.query({
        name: 'twice', text: 'SELECT $1::int * 2 AS n, $2::text AS t', values: [value, 'é'],
      })));
      assert.deepStrictEqual(answers.map(({ rows }) => rows[0]), [...Array(10).keys()].map((n) => ({ n: n * 2, t: 'é' })));
      await part(client, task);
      await own(client);
    } finally {
      client.release();
    }
  }
}

async function main() {
  await Promise.all([...Array(TASKS).keys()].map(work));
  const client = await take();
  assert.strictEqual((await client.query('SELECT count(*)::int AS n FROM line')).rows[0].n, TASKS * 20);
  client.release();
  await pool.end();
  console.log('done');
}

main().catch((error) => { console.error(error); process.exit(1); });
