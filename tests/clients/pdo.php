<?php
// PDO for PostgreSQL. It has no pool, so each writer is a process with a connection; harness.py says how it is run.
declare(strict_types=1);

function say(array $what): void
{
    fwrite(STDOUT, json_encode($what, JSON_UNESCAPED_UNICODE) . "\n");
}

function connected(string $more = ''): PDO
{
    $place = sprintf('pgsql:host=%s;port=%s;dbname=app;sslmode=verify-full;sslrootcert=%s;connect_timeout=20%s',
        getenv('HOST'), getenv('PORT'), getenv('CA'), $more);
    return new PDO($place, 'app', 'app', [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
}

function equal(mixed $found, mixed $wanted, string $what): void
{
    if ($found !== $wanted) {
        throw new Exception("$what: " . json_encode($found) . ' and not ' . json_encode($wanted));
    }
}

function tls(string $more = ''): void
{
    equal(connected($more)->query('SELECT 1')->fetchColumn(), 1, 'the answer');
}

function copied(): void
{
    $db = connected();
    $lines = array_map(fn ($number) => "$number\twords $number é\n", range(0, 999));
    $db->exec('TRUNCATE copied');
    $db->pgsqlCopyFromArray('copied', $lines);
    equal(implode('', $db->pgsqlCopyToArray('copied')), implode('', $lines), 'what COPY brings out');
}

function prepared(): void
{
    $databases = [connected(), connected()];
    $statements = [];
    foreach ($databases as $add => $db) {
        $statements[] = $db->prepare("SELECT ?::int + $add");
    }
    for ($number = 0; $number < 20; $number++) {
        foreach ($statements as $add => $statement) {
            $statement->execute([$number]);
            equal($statement->fetchColumn(), $number + $add, 'the answer');
        }
    }
}

function one_writer(int $writer): void
{
    $db = null;
    for ($number = 0; !file_exists(getenv('STOP')); $number++) {
        clearstatcache();
        $begun = microtime(true);
        try {
            $db ??= connected();
            $db->prepare('INSERT INTO written VALUES (?, ?)')->execute([$writer, $number]);
            say(['wrote' => [$writer, $number], 'seconds' => microtime(true) - $begun]);
        } catch (PDOException $error) {
            say(['error' => $error->getMessage(), 'at' => [$writer, $number]]);
            $db = null;
        }
        usleep(50000);
    }
}

function writes(): void
{
    for ($writer = 0; $writer < 4; $writer++) {
        if (pcntl_fork() === 0) {
            one_writer($writer);
            exit(0);
        }
    }
    while (pcntl_wait($status) > 0);
}

say(['version' => phpversion('pdo_pgsql')]);
if ($argv[1] === 'writes') {
    writes();
    exit(0);
}
$checks = ['tls' => tls(...), 'binding' => fn () => tls(';channel_binding=require'), 'copy' => copied(...), 'prepared' => prepared(...)];
foreach ($checks as $check => $run) {
    try {
        $run();
        say(['check' => $check, 'result' => 'ok', 'note' => '']);
    } catch (Throwable $error) {
        say(['check' => $check, 'result' => 'failed', 'note' => $error->getMessage()]);
    }
}
say(['check' => 'cancel', 'result' => 'cannot', 'note' => 'no way to cancel']);
say(['check' => 'pool', 'result' => 'cannot', 'note' => 'none']);
