// knex on node-postgres, with knex's own pool.
'use strict';
const assert = require('assert');
const h = require('./harness.js');
const knex = require('knex');

const newPool = (more = {}) => knex({
  client: 'pg', connection: { ...h.SETTINGS, ssl: h.SSL, ...more }, pool: { min: 0, max: h.CONNECTIONS }, acquireConnectionTimeout: 30000,
});

async function connected(run, more) {
  const db = newPool(more);
  try {
    return await run(db);
  } finally {
    await db.destroy();
  }
}

const value = (db) => async (query) => Number(Object.values((await db.raw(query)).rows[0])[0]);
const tls = () => connected(async (db) => assert.strictEqual(await value(db)('SELECT 1'), 1));
const binding = () => connected(async (db) => {
  assert.strictEqual(await value(db)('SELECT 1'), 1);
  return 'with `enableChannelBinding`';
}, { enableChannelBinding: true });

// Its way to cancel is a timeout, after which it calls pg_cancel_backend in another connection.
// Behind a pool in transaction mode it does not know which server process has its statement.
const cancel = process.env.ROUTE === 'pooled' ? h.cannot('not with a pool of the router') : () => connected(async (db) => {
  await assert.rejects(db.raw(h.SLEEP).timeout(1000, { cancel: true }), { name: 'KnexTimeoutError' });
  const active = `SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '${h.SLEEP}'`;
  for (let tries = 20; await value(db)(active); tries--) {
    assert.ok(tries, 'the statement runs on');
    await h.pause(100);
  }
  return 'by `pg_cancel_backend`';
});

// It names no statements, so each one is prepared without a name.
const pooled = () => connected((db) => h.counted(value(db), () => db.transaction((mine) => mine.raw(h.ADD))));

const writes = () => connected((db) => h.write((writer, number) => db('written').insert({ writer, number })));

const checks = { tls, binding, cancel, copy: h.cannot("the driver's"), prepared: h.cannot('only without a name'), pool: pooled };
h.main('knex', checks, writes);
