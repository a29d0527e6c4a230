// drizzle on postgres.js and its pool.
'use strict';
const assert = require('assert');
const postgres = require('postgres');
const { drizzle } = require('drizzle-orm/postgres-js');
const { integer, pgTable } = require('drizzle-orm/pg-core');
const { sql } = require('drizzle-orm');
const h = require('./harness.js');

const written = pgTable('written', { writer: integer(), number: integer() });

async function connected(run, max = 1) {
  const driver = postgres({ ...h.SETTINGS, ssl: h.SSL, max, connect_timeout: 20, onnotice() {} });
  try {
    return await run(drizzle(driver));
  } finally {
    await driver.end({ timeout: 1 });
  }
}

const value = (db) => async (query) => Number(Object.values((await db.execute(sql.raw(query)))[0])[0]);
const tls = () => connected(async (db) => assert.strictEqual(await value(db)('SELECT 1'), 1));

const prepared = () => connected((one) => connected(async (two) => {
  const statements = [one, two].map((db, add) => db.select({ sum: sql`cast(${sql.placeholder('number')} AS int) + ${sql.raw(String(add))}` })
    .from(sql`(VALUES (1)) AS single`).prepare('mine'));
  for (let number = 0; number < h.TIMES; number++) {
    for (const [add, statement] of statements.entries()) {
      assert.strictEqual((await statement.execute({ number }))[0].sum, number + add);
    }
  }
}));

const pooled = () => connected((db) => connected(
  (pool) => h.counted(value(db), () => pool.transaction((mine) => mine.execute(sql.raw(h.ADD)))), h.CONNECTIONS));

const writes = () => connected(
  (pool) => h.write((writer, number) => pool.insert(written).values({ writer, number })), h.CONNECTIONS);

const checks = {
  tls, binding: h.cannot('not offered'), cancel: h.cannot("the driver's"), copy: h.cannot("the driver's"), prepared, pool: pooled,
};
h.main('drizzle-orm', checks, writes);
