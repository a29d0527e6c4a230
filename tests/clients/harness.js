// What the programs for drivers in JavaScript share; harness.py says how they are run.
'use strict';
const assert = require('assert');
const fs = require('fs');

const { HOST, PORT, CA, STOP } = process.env;
const WRITERS = 4, CONNECTIONS = 4, TASKS = 32, TIMES = 20;
const SLEEP = 'SELECT pg_sleep(30)';
const LINES = Array.from({ length: 1000 }, (_, number) => `${number}\twords ${number} é\n`);
const COPY_IN = 'COPY copied FROM STDIN', COPY_OUT = 'COPY (SELECT * FROM copied ORDER BY id) TO STDOUT';
const ADD = 'UPDATE counted SET number = number + 1', COUNT = 'SELECT number FROM counted';
// Node verifies no addresses unless it is told the name.
const SSL = { ca: fs.readFileSync(CA, 'utf8'), host: HOST };
const SETTINGS = { host: HOST, port: Number(PORT), user: 'app', password: 'app', database: 'app' };

// Some packages do not export their package.json.
const version = (name) => JSON.parse(fs.readFileSync(`${process.env.NODE_PATH}/${name}/package.json`, 'utf8')).version;

class Cannot extends Error {}

const say = (what) => console.log(JSON.stringify(what));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const described = (error) => `${error.code || ''} ${error.message} ${error.cause ? described(error.cause) : ''}`.trim();
const cannot = (why) => async () => { throw new Cannot(why); };
const tasks = (run) => Promise.all(Array.from({ length: TASKS }, (_, number) => run(number)));

// RUN adds one to the counter for each task; VALUE(query) asks for a number.
async function counted(value, run) {
  const before = await value(COUNT);
  await tasks(run);
  assert.strictEqual(await value(COUNT), before + TASKS);
}

// RUNNING is the promise of a statement that lasts. The first request may come before it runs.
async function cancelled(running, cancel) {
  let error;
  const ended = running.then(() => { error = new Error('it ended by itself'); }, (reason) => { error = reason; });
  while (!error) {
    await cancel();
    await Promise.race([ended, pause(200)]);
  }
  assert.strictEqual((error.cause || error).code, '57014', described(error));
}

// ONE(writer, number) writes one row; each writer goes on until it is told to stop.
async function write(one) {
  await Promise.all(Array.from({ length: WRITERS }, async (_, writer) => {
    for (let number = 0; !fs.existsSync(STOP); number++) {
      const begun = Date.now();
      try {
        await one(writer, number);
        say({ wrote: [writer, number], seconds: (Date.now() - begun) / 1000 });
      } catch (error) {
        say({ error: described(error), at: [writer, number] });
      }
      await pause(50);
    }
  }));
}

async function main(name, checks, writes) {
  say({ version: version(name) });
  process.on('uncaughtException', (error) => say({ error: `uncaught: ${described(error)}`, at: [] }));
  if (process.argv[2] === 'writes') await writes();
  else {
    for (const [check, run] of Object.entries(checks)) {
      try {
        say({ check, result: 'ok', note: (await run()) || '' });
      } catch (error) {
        say({ check, result: error instanceof Cannot ? 'cannot' : 'failed', note: error instanceof Cannot ? error.message : described(error) });
      }
    }
  }
  process.exit(0);
}

module.exports = {
  ADD, CONNECTIONS, COPY_IN, COPY_OUT, LINES, SETTINGS, SLEEP, SSL, TIMES, cancelled, cannot, counted, main, pause, write,
};
