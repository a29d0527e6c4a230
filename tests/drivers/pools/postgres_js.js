// postgres.js, which prepares every statement and pipelines. Run with HOST, PORT, SCHEMA, TASKS and NODE_PATH; see
// tests/it/pooling/drivers.rs.
'use strict';
const assert = require('assert');
const { Readable } = require('stream');
const { pipeline } = require('stream/promises');
const postgres = require('postgres');

const { HOST, PORT, SCHEMA } = process.env;
const TASKS = Number(process.env.TASKS);

const sql = postgres({
  host: HOST, port: Number(PORT), user: 'app', password: 'app', database: 'app', max: 8, ssl: false, onnotice: () => {},
});

// A connection of the pool for itself: between its transactions too.
async function reserved(work) {
  const own = await sql.reserve();
  try {
    await own`SELECT set_config('search_path', ${SCHEMA}, false)`;
    return await work(own);
  } finally {
    own.release();
  }
}

async function transfer(task) {
  const [first, second] = [task % 8 + 1, (task + 3) % 8 + 1].sort((a, b) => a - b);
  await sql.begin(async (sql) => {
    await sql`SELECT set_config('search_path', ${SCHEMA}, true), set_config('app.tenant', ${`${SCHEMA} ${task}`}, true)`;
    const rows = await sql`SELECT id FROM account WHERE id IN (${first}, ${second}) ORDER BY id FOR UPDATE`;
    assert.deepStrictEqual(rows.map((row) => row.id), [first, second]);
    await sql`UPDATE account SET amount = amount - 1 WHERE id = ${first}`;
    await assert.rejects(
      sql.savepoint((sql) => sql`UPDATE account SET amount = amount - 1000000 WHERE id = ${first}`), { code: '23514' });
    await sql`UPDATE account SET amount = amount + 1 WHERE id = ${second}`;
    const [row] = await sql`SELECT current_setting('app.tenant') AS tenant, (SELECT name FROM place) AS name`;
    assert.deepStrictEqual({ ...row }, { tenant: `${SCHEMA} ${task}`, name: SCHEMA });
  });
}

async function errors(task) {
  await assert.rejects(sql.begin(async (sql) => {
    await sql`SELECT set_config('search_path', ${SCHEMA}, true)`;
    await sql`INSERT INTO line VALUES (${task}, 'of a transaction that fails')`;
    await sql`INSERT INTO account VALUES (1, 1)`;
  }), { code: '23505' });
  await assert.rejects(sql.begin(async (sql) => {
    await sql`SET LOCAL statement_timeout = '20ms'`;
    await sql`SELECT pg_sleep(${30})`;
  }), { code: '57014' });
  for (let i = 0; i < 2; i++) {
    await assert.rejects(sql`SELECT nothing_of_the_kind, ${task}::int`, { code: '42703' });
  }
  if (task % 8 === 0) {
    const query = sql`SELECT pg_sleep(${30})`;
    const asking = setInterval(() => query.cancel(), 100);
    await assert.rejects(query, { code: '57014' });
    clearInterval(asking);
  }
}

async function lines(task) {
  await reserved(async (sql) => {
    const texts = [...Array(20).keys()].map((line) => `${line} ü`);
    await pipeline(Readable.from(texts.map((text) => `${task}\t${text}\n`)), await sql`COPY line FROM STDIN`.writable());
    const chunks = [];
    for await (const chunk of await sql`COPY (SELECT text FROM line ORDER BY task) TO STDOUT`.readable()) {
      chunks.push(chunk);
    }
    assert(Buffer.concat(chunks).toString().includes('19 ü\n'));
    const found = [];
    for await (const rows of sql`SELECT text FROM line WHERE task = ${task}`.cursor(5)) {
      found.push(...rows.map((row) => row.text));
    }
    assert.deepStrictEqual(found.sort(), [...texts].sort());
    await sql`RESET search_path`;
  });
}

async function many() {
  const answers = await Promise.all([...Array(20).keys()].map(
    (value) => sql`SELECT ${value}::int * 2 AS n, ${'é'}::text AS t, current_setting('search_path') AS path,
      current_setting('statement_timeout') AS timeout`));
  answers.forEach(([row], n) => assert.deepStrictEqual({ ...row }, { n: n * 2, t: 'é', path: '"$user", public', timeout: '0' }));
}

async function work(task) {
  for (const part of [transfer, errors, lines, transfer]) {
    await part(task);
  }
}

async function main() {
  await many();
  await Promise.all([...Array(TASKS).keys()].map(work));
  await many();
  await reserved(async (sql) => {
    assert.strictEqual((await sql`SELECT count(*)::int AS n FROM line`)[0].n, TASKS * 20);
  });
  await sql.end();
  console.log('done');
}

main().catch((error) => { console.error(error); process.exit(1); });
