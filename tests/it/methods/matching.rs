//! Which rule a client falls under: types, databases, users, addresses, and files that are
//! included.

use super::*;

/// Who gets in, and who does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    In,
    Out,
}
use Outcome::{In, Out};

const HBA: &str = r#"
local        all          postgres                trust
# Types.
local        all          t_local                 trust
host         all          t_host      127.0.0.0/8 trust
hostssl      all          t_ssl       127.0.0.0/8 trust
hostnossl    all          t_nossl     127.0.0.0/8 trust
hostgssenc   all          t_gss       127.0.0.0/8 trust
hostnogssenc all          t_nogss     127.0.0.0/8 trust
# Databases.
host         all          d_all       127.0.0.0/8 trust
host         sameuser     d_same      127.0.0.0/8 trust
host         samerole     d_role,root_like 127.0.0.0/8 trust
host         samegroup    d_group     127.0.0.0/8 trust
host         replication  d_repl      127.0.0.0/8 trust
host         "replication" d_quotrepl 127.0.0.0/8 trust
host         app,postgres d_list      127.0.0.0/8 trust
host         "all"        d_quoted    127.0.0.0/8 trust
host         "/^ap{2}$"   d_regex     127.0.0.0/8 trust
host         @databases   d_file      127.0.0.0/8 trust
# Users.
host         all          +staff      127.0.0.0/8 trust
host         all          "+crew"     127.0.0.0/8 trust
host         all          /^u_re\d+$  127.0.0.0/8 trust
host         all          @users      127.0.0.0/8 trust
host         all          "u two"     127.0.0.0/8 trust
host         app          "all"       127.0.0.0/8 trust
# Addresses.
host         all          a_all       all         trust
host         all          a_cidr      127.98.0.0/24 trust
host         all          a_mask      127.98.0.5  255.255.0.255 trust
host         all          a_samehost  samehost    trust
host         all          a_samenet   samenet     trust
host         all          a_six       ::/0        trust
host         all          a_name      localhost   trust
host         all          a_other     elsewhere.example.org trust
# The first that matches decides.
host         all          first       127.0.0.1/32 reject
host         all          first       all         trust
# Lines from elsewhere.
include           more/one.conf
include_if_exists more/missing.conf
include_dir       more/all
host all i_continued \
    127.0.0.0/8 \
    trust
"#;

const ROLES: &str = r"
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['t_local', 't_host', 't_ssl', 't_nossl', 't_gss', 't_nogss', 'd_all', 'd_same',
        'd_role', 'd_group', 'd_repl', 'd_quotrepl', 'd_list', 'd_quoted', 'd_regex', 'd_file', 'u_direct',
        'u_nested', 'u_outside', 'u_re7', 'u_red', 'u_file', 'u_nested_file', 'u two', 'all', '+crew', 'a_all',
        'a_cidr', 'a_mask', 'a_samehost', 'a_samenet', 'a_six', 'a_name', 'a_other', 'first', 'i_one', 'i_two',
        'i_hidden', 'i_continued', 'nobody_named', 'staff', 'crew', 'band']
    LOOP
        EXECUTE format('CREATE ROLE %I LOGIN', name);
    END LOOP;
END $$;
CREATE ROLE u_noinherit LOGIN NOINHERIT;
CREATE ROLE u_super LOGIN SUPERUSER;
CREATE ROLE root_like LOGIN SUPERUSER;
GRANT staff TO u_direct, u_noinherit, crew;
GRANT band TO d_role, d_group;
GRANT crew TO u_nested;
ALTER ROLE d_repl REPLICATION;
ALTER ROLE d_all REPLICATION;
ALTER ROLE d_quotrepl REPLICATION;
";

/// User, what is said besides, and who gets in. `local` stands for the Unix socket.
const CASES: &[(&str, &str, Outcome)] = &[
    ("t_local", "local", In),
    ("t_local", "sslmode=disable", Out),
    ("t_local", "sslmode=require", Out),
    ("t_host", "sslmode=disable", In),
    ("t_host", "sslmode=require", In),
    ("t_host", "local", Out),
    ("t_ssl", "sslmode=require", In),
    ("t_ssl", "sslmode=disable", Out),
    ("t_ssl", "local", Out),
    ("t_nossl", "sslmode=disable", In),
    ("t_nossl", "sslmode=require", Out),
    ("t_gss", "sslmode=disable", Out),
    ("t_gss", "sslmode=require", Out),
    ("t_nogss", "sslmode=disable", In),
    ("t_nogss", "sslmode=require", In),
    ("d_all", "sslmode=disable", In),
    ("d_all", "sslmode=disable replication=true", Out),
    ("d_all", "sslmode=require replication=true", Out),
    ("d_all", "sslmode=disable replication=database", In),
    ("d_same", "sslmode=disable dbname=d_same", In),
    ("d_same", "sslmode=disable", Out),
    ("d_role", "sslmode=disable dbname=band", In),
    ("d_role", "sslmode=disable dbname=d_role", In),
    ("d_role", "sslmode=disable", Out),
    ("root_like", "sslmode=disable dbname=band", Out),
    ("d_group", "sslmode=disable dbname=band", In),
    ("d_group", "sslmode=disable dbname=crew", Out),
    ("d_repl", "sslmode=disable replication=true", In),
    ("d_repl", "sslmode=disable", Out),
    ("d_repl", "sslmode=disable dbname=replication", Out),
    ("d_repl", "sslmode=disable replication=database", Out),
    ("d_quotrepl", "sslmode=disable replication=true", Out),
    ("d_quotrepl", "sslmode=disable dbname=replication", In),
    ("d_list", "sslmode=disable", In),
    ("d_list", "sslmode=disable dbname=postgres", In),
    ("d_list", "sslmode=disable dbname=template1", Out),
    ("d_quoted", "sslmode=disable dbname=all", In),
    ("d_quoted", "sslmode=disable", Out),
    ("d_regex", "sslmode=disable", In),
    ("d_regex", "sslmode=disable dbname=apq", Out),
    ("d_file", "sslmode=disable", In),
    ("d_file", "sslmode=disable dbname=nested", In),
    ("d_file", "sslmode=disable dbname=postgres", Out),
    ("u_direct", "sslmode=disable", In),
    ("u_nested", "sslmode=disable", In),
    ("u_noinherit", "sslmode=disable", In),
    ("staff", "sslmode=disable", In),
    ("u_super", "sslmode=disable", Out),
    ("u_outside", "sslmode=disable", Out),
    ("+crew", "sslmode=disable", In),
    ("u_re7", "sslmode=disable", In),
    ("u_red", "sslmode=disable", Out),
    ("u_file", "sslmode=disable", In),
    ("u_nested_file", "sslmode=disable", In),
    ("u two", "sslmode=disable", In),
    ("all", "sslmode=disable", In),
    ("nobody_named", "sslmode=disable", Out),
    ("a_all", "sslmode=disable", In),
    ("a_six", "sslmode=disable", Out),
    ("a_name", "sslmode=disable", In),
    ("a_other", "sslmode=disable", Out),
    ("first", "sslmode=disable", Out),
    ("first", "sslmode=require", Out),
    ("i_one", "sslmode=disable", In),
    ("i_two", "sslmode=disable", In),
    ("i_hidden", "sslmode=disable", Out),
    ("i_continued", "sslmode=disable", In),
];

/// The same by the client's address.
const SOURCES: &[(&str, [u8; 4], Outcome)] = &[
    ("a_all", [127, 98, 0, 1], In),
    ("a_cidr", [127, 98, 0, 255], In),
    ("a_cidr", [127, 98, 1, 0], Out),
    ("a_cidr", [127, 0, 0, 1], Out),
    ("a_mask", [127, 98, 77, 5], In),
    ("a_mask", [127, 98, 77, 4], Out),
    ("a_mask", [127, 99, 77, 5], Out),
    ("a_samehost", [127, 0, 0, 1], In),
    ("a_samehost", [127, 98, 0, 1], Out),
    ("a_samenet", [127, 98, 0, 1], In),
    ("first", [127, 0, 0, 1], Out),
    ("first", [127, 0, 0, 2], In),
];

/// With a rule that trusts: a session, or the server's word that the database it asks for is not
/// there.
fn outcome(told: &Told) -> Outcome {
    match told {
        Ok(_) => In,
        Err(words) if words.starts_with("database ") && words.ends_with("does not exist") => In,
        Err(_) => Out,
    }
}

/// All that the rules above let in log into the servers as this one.
fn server() -> Postgres {
    let server = Postgres::start(&postgres::Options {
        hba: Some("host all,replication all 127.0.0.0/8 scram-sha-256".to_owned()),
        ..postgres::Options::default()
    });
    server.sql("CREATE ROLE entrant LOGIN REPLICATION PASSWORD 'entrant'");
    server
}

fn auth(dir: &Path, hba: &Path) -> String {
    let password = secret(dir, "entrant", "entrant");
    format!(
        "  hba_file: {}\n  server_credentials: [{{users: all, server_user: entrant, password_file: {}}}]\n",
        hba.display(),
        password.display()
    )
}

#[test]
fn the_rules_let_in_whom_postgresql_lets_in() {
    let dir = open_directory();
    let hba = write(dir.path(), "pg_hba.conf", HBA);
    let ident = write(dir.path(), "pg_ident.conf", "");
    write(dir.path(), "databases", "app other # and\n@more/databases\n");
    write(dir.path(), "more/databases", "nested\n");
    write(dir.path(), "users", "\"u_file\", @more/users\n");
    write(dir.path(), "more/users", "u_nested_file\n");
    write(dir.path(), "more/one.conf", "host all i_one 127.0.0.0/8 trust\n");
    write(
        dir.path(),
        "more/all/two.conf",
        "host all i_two 127.0.0.0/8 trust\n",
    );
    write(
        dir.path(),
        "more/all/.hidden.conf",
        "host all i_hidden 127.0.0.0/8 trust\n",
    );
    write(
        dir.path(),
        "more/all/other.txt",
        "host all i_hidden 127.0.0.0/8 trust\n",
    );
    let server = server();
    server.sql(ROLES);
    let (_reference, direct) = reference(&hba, &ident, ROLES, "");
    let (router, through) = router(&server, dir.path(), &auth(dir.path(), &hba), Options::default());

    let mut wrong = Vec::new();
    for &(user, extra, expected) in CASES {
        let ask = |place: &Place| match extra {
            "local" => place.local(user, "", ""),
            extra => place.psql(user, "", extra),
        };
        let (theirs, ours) = (ask(&direct), ask(&through));
        let agree = match (&theirs, &ours) {
            (Ok(_), Ok(_)) => true,
            (theirs, ours) => theirs == ours,
        };
        if !agree || outcome(&theirs) != expected || outcome(&ours) != expected {
            wrong.push(format!(
                "{user} {extra}: {expected:?} expected\n  direct: {theirs:?}\n  router: {ours:?}"
            ));
        }
    }
    for &(user, source, expected) in SOURCES {
        let [theirs, ours] = [&direct, &through].map(|place| place.knock(source.into(), user));
        let outcome = |message: &Message| match (message.tag, &message.body[..]) {
            (b'R', [0, 0, 0, 0]) => In,
            (b'E', _) => Out,
            other => panic!("{other:?}"),
        };
        let agree = theirs.tag != b'E' || ours.tag != b'E' || fields(&theirs) == fields(&ours);
        if !agree || outcome(&theirs) != expected || outcome(&ours) != expected {
            wrong.push(format!(
                "{user} from {source:?}: {expected:?} expected\n  direct: {theirs:?}\n  router: {ours:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Whoever comes in is the user that the credential names.
    let as_whom = through.psql("t_host", "", "sslmode=disable");
    assert_eq!(as_whom.as_deref(), Ok("entrant"));
    let rejected = router.metric("trunkline_logins_refused_total{reason=\"rejected\"}");
    assert_eq!(rejected, 3.0, "`first`, by the rule and not for want of one");
}

const HOSTS: &str = "\
127.0.0.1 client.example.org
127.98.1.1 db1.deep.example.org
127.98.1.2 Upper.Example.ORG
127.98.1.3 notexample.org
127.98.1.4 example.org
127.98.1.5 db1.example.org.elsewhere.net
";

/// The router has a file of hosts of its own; its clients are found there.
#[test]
fn names_of_hosts_come_from_the_hosts_file() {
    let dir = open_directory();
    let hosts = write(dir.path(), "hosts", HOSTS);
    let hba = write(
        dir.path(),
        "pg_hba.conf",
        "host all by_name client.example.org trust\nhost all by_suffix .example.org trust\n\
         host all by_upper upper.example.org trust\nhost all nobody all reject\n",
    );
    let into = format!(
        "mount --bind {} /etc/hosts && exec \"$0\" \"$@\"",
        hosts.display()
    );
    let prefix = ["unshare", "-m", "sh", "-c", &into];
    let able = output(
        Command::new(prefix[0])
            .args(&prefix[1..])
            .args(["cat", "/etc/hosts"]),
    );
    if String::from_utf8_lossy(&able.stdout) != HOSTS {
        eprintln!("SKIPPED: names_of_hosts_come_from_the_hosts_file needs a mount namespace, that is, root");
        return;
    }
    let server = server();
    let (_router, through) = router(
        &server,
        dir.path(),
        &auth(dir.path(), &hba),
        Options {
            prefix: prefix.map(str::to_owned).to_vec(),
            ..Options::default()
        },
    );
    assert_eq!(
        through.psql("by_name", "", "sslmode=disable").as_deref(),
        Ok("entrant")
    );
    assert_eq!(
        through.psql("by_suffix", "", "sslmode=require").as_deref(),
        Ok("entrant")
    );
    for (user, source, expected) in [
        ("by_name", [127, 0, 0, 1], In),
        ("by_name", [127, 98, 1, 1], Out),
        ("by_suffix", [127, 98, 1, 1], In),
        ("by_suffix", [127, 98, 1, 2], In),
        ("by_upper", [127, 98, 1, 2], In),
        ("by_suffix", [127, 98, 1, 3], Out),
        ("by_suffix", [127, 98, 1, 4], Out),
        ("by_suffix", [127, 98, 1, 5], Out),
    ] {
        let first = through.knock(source.into(), user);
        let outcome = if first.tag == b'R' { In } else { Out };
        assert_eq!(outcome, expected, "{user} from {source:?}: {first:?}");
        if outcome == Out {
            let [a, b, c, d] = source;
            let words = format!(
                "no pg_hba.conf entry for host \"{a}.{b}.{c}.{d}\", user \"{user}\", database \"app\", no encryption"
            );
            assert_eq!(
                (first.code(), first.field(b'M')),
                ("28000".to_owned(), Some(words))
            );
        }
    }
}
