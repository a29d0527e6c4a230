// A statement during which the session is ended: prints the SQLSTATE that the driver shows.
'use strict'
const fs = require('fs')
const { Client } = require('pg')

async function main() {
  const client = new Client({
    host: process.env.HOST,
    port: 6432,
    user: 'app',
    password: 'app',
    database: 'app',
    ssl: { ca: fs.readFileSync(process.env.CA), checkServerIdentity: () => undefined },
  })
  // Behind the answer the connection ends, which is an event of its own.
  client.on('error', () => {})
  await client.connect()
  try {
    await client.query("SELECT pg_sleep(600), 'outcome unknown'")
  } catch (error) {
    console.log(error.code)
  }
}

main()
