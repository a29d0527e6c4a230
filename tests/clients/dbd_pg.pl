# DBD::Pg. It has no pool, so each writer is a process with a connection; harness.py says how it is run.
use strict;
use warnings;
use utf8;
use DBI;
use DBD::Pg qw(:async);
use Encode qw(encode_utf8);
use JSON::PP;
use Time::HiRes qw(sleep time);

my $json = JSON::PP->new->canonical->utf8;
$| = 1;

sub say_json { print $json->encode({@_}) . "\n" }

sub connected {
    my $more = shift // '';
    my $place = "host=$ENV{HOST};port=$ENV{PORT};dbname=app;sslmode=verify-full;sslrootcert=$ENV{CA};connect_timeout=20$more";
    return DBI->connect("dbi:Pg:$place", 'app', 'app', { RaiseError => 1, PrintError => 0, AutoCommit => 1 });
}

sub equal {
    my ($found, $wanted, $what) = @_;
    die "$what: $found and not $wanted" if $found ne $wanted;
}

sub tls { equal(connected(shift)->selectrow_array('SELECT 1'), 1, 'the answer') }

# The first request may come before the statement runs.
sub cancel {
    my $db = connected();
    my $statement = $db->prepare('SELECT pg_sleep(30)', { pg_async => PG_ASYNC });
    $statement->execute;
    sleep 0.5;
    eval { $db->pg_cancel };
    equal($db->state, '57014', 'SQLSTATE');
    equal($db->selectrow_array('SELECT 1'), 1, 'the next answer');
}

sub copy {
    my $db = connected();
    my @lines = map { "$_\twords $_ é\n" } 0 .. 999;
    $db->do('TRUNCATE copied');
    $db->do('COPY copied FROM STDIN');
    $db->pg_putcopydata($_) for @lines;
    $db->pg_putcopyend;
    $db->do('COPY (SELECT * FROM copied ORDER BY id) TO STDOUT');
    my ($line, $out) = ('', '');
    $out .= $line while $db->pg_getcopydata($line) >= 0;
    equal($out, join('', @lines), 'what COPY brings out');
}

sub prepared {
    my @statements = map { connected()->prepare("SELECT ?::int + $_", { pg_prepare_now => 1 }) } 0, 1;
    for my $number (0 .. 19) {
        for my $add (0, 1) {
            $statements[$add]->execute($number);
            equal($statements[$add]->fetchrow_array, $number + $add, 'the answer');
            $statements[$add]->finish;
        }
    }
}

sub one_writer {
    my $writer = shift;
    my ($number, $db) = (0, undef);
    until (-e $ENV{STOP}) {
        my $begun = time;
        if (eval { $db //= connected(); $db->do('INSERT INTO written VALUES (?, ?)', undef, $writer, $number) }) {
            say_json(wrote => [$writer + 0, $number + 0], seconds => time - $begun);
        } else {
            say_json(error => "$@", at => [$writer, $number]);
            undef $db;
        }
        $number++;
        sleep 0.05;
    }
}

sub writes {
    for my $writer (0 .. 3) {
        next if fork;
        one_writer($writer);
        exit;
    }
    1 while wait != -1;
}

say_json(version => "$DBD::Pg::VERSION");
if ($ARGV[0] eq 'writes') {
    writes();
    exit;
}
my %checks = (tls => sub { tls('') }, binding => sub { tls(';channel_binding=require') }, cancel => \&cancel, copy => \&copy,
    prepared => \&prepared);
for my $check (sort keys %checks) {
    my $passed = eval { $checks{$check}->(); 1 };
    say_json(check => $check, result => $passed ? 'ok' : 'failed', note => $passed ? '' : "$@");
}
say_json(check => 'pool', result => 'cannot', note => 'none');
