# Ruby's pg. It has no pool, so each writer has a connection; harness.py says how it is run.
require 'json'
require 'pg'

$stdout.sync = true

def say(what)
  $stdout.write("#{what.to_json}\n")
end

def connect(**more)
  PG.connect(host: ENV['HOST'], port: ENV['PORT'], user: 'app', password: 'app', dbname: 'app', sslmode: 'verify-full',
             sslrootcert: ENV['CA'], connect_timeout: 20, **more)
end

def equal(found, wanted, what)
  raise "#{what}: #{found} and not #{wanted}" unless found == wanted
end

def tls(**more)
  connection = connect(**more)
  equal(connection.ssl_in_use?, true, 'TLS')
  equal(connection.exec('SELECT 1').getvalue(0, 0), '1', 'the answer')
end

# The first request may come before the statement runs.
def cancel
  connection = connect
  error = nil
  thread = Thread.new do
    connection.exec('SELECT pg_sleep(30)')
  rescue PG::Error => e
    error = e
  end
  connection.cancel until thread.join(0.2)
  equal(error&.result&.error_field(PG::PG_DIAG_SQLSTATE), '57014', 'SQLSTATE')
  equal(connection.exec('SELECT 1').getvalue(0, 0), '1', 'the next answer')
end

def copy
  connection = connect
  lines = (0..999).map { |number| "#{number}\twords #{number} é\n" }
  connection.exec('TRUNCATE copied')
  connection.copy_data('COPY copied FROM STDIN') { lines.each { |line| connection.put_copy_data(line) } }
  out = +''
  connection.copy_data('COPY (SELECT * FROM copied ORDER BY id) TO STDOUT') do
    while (line = connection.get_copy_data)
      out << line.force_encoding('UTF-8')
    end
  end
  equal(out, lines.join, 'what COPY brings out')
end

def prepared
  connections = [connect, connect]
  connections.each_with_index { |connection, add| connection.prepare('mine', "SELECT $1::int + #{add}") }
  20.times do |number|
    connections.each_with_index do |connection, add|
      equal(connection.exec_prepared('mine', [number]).getvalue(0, 0).to_i, number + add, 'the answer')
    end
  end
end

def write(connection, writer, number)
  begun = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  connection.exec_params('INSERT INTO written VALUES ($1, $2)', [writer, number])
  say(wrote: [writer, number], seconds: Process.clock_gettime(Process::CLOCK_MONOTONIC) - begun)
end

def writes
  threads = (0..3).map do |writer|
    Thread.new do
      connection = nil
      (0..).each do |number|
        break if File.exist?(ENV['STOP'])

        begin
          connection ||= connect
          write(connection, writer, number)
        rescue PG::Error => e
          say(error: e.message, at: [writer, number])
          connection = nil
        end
        sleep 0.05
      end
    end
  end
  threads.each(&:join)
end

say(version: PG::VERSION)
if ARGV[0] == 'writes'
  writes
  exit
end
checks = { tls: -> { tls }, binding: -> { tls(channel_binding: 'require') }, cancel: -> { cancel }, copy: -> { copy },
           prepared: -> { prepared } }
checks.each do |check, run|
  run.call
  say(check: check, result: 'ok', note: '')
rescue StandardError => e
  say(check: check, result: 'failed', note: e.message)
end
say(check: 'pool', result: 'cannot', note: 'none')
