// pgjdbc through both ports. The tests run it with the driver on the class path and HOST and CA in the environment.
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Arrays;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

public class Jdbc {
    static final String HOST = System.getenv("HOST");

    static Connection connect(String hosts, String... more) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "app");
        properties.setProperty("password", "app");
        properties.setProperty("sslmode", "verify-ca");
        properties.setProperty("sslrootcert", System.getenv("CA"));
        properties.setProperty("connectTimeout", "10");
        for (int i = 0; i < more.length; i += 2) {
            properties.setProperty(more[i], more[i + 1]);
        }
        return DriverManager.getConnection("jdbc:postgresql://" + hosts + "/app", properties);
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    static String ask(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    static void fails(String state, Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        } catch (SQLException error) {
            check(state.equals(error.getSQLState()), sql + " gave " + error.getSQLState() + ", not " + state);
            return;
        }
        throw new AssertionError(sql + " did not fail");
    }

    static void reads(Connection connection) throws Exception {
        // Server-side prepared from the fifth execution on.
        try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int * 2, ?::text")) {
            for (int i = 0; i < 20; i++) {
                statement.setInt(1, i);
                statement.setString(2, "é");
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    check(rows.getInt(1) == i * 2 && rows.getString(2).equals("é"), "prepared statement");
                }
            }
        }
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(100);
            int count = 0;
            try (ResultSet rows = statement.executeQuery("SELECT g FROM generate_series(1, 1000) g")) {
                while (rows.next()) {
                    count++;
                }
            }
            check(count == 1000, "portals");
        }
        connection.commit();
        connection.setAutoCommit(true);
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        check(copy.copyOut("COPY (SELECT g FROM generate_series(1, 10000) g) TO STDOUT", new StringWriter()) == 10000, "COPY out");
        Statement slow = connection.createStatement();
        Thread asks = new Thread(() -> {
            while (!Thread.currentThread().isInterrupted()) {
                try {
                    Thread.sleep(50);
                    slow.cancel();
                } catch (SQLException error) {
                    throw new AssertionError(error);
                } catch (InterruptedException ended) {
                    return;
                }
            }
        });
        asks.start();
        try {
            slow.execute("SELECT pg_sleep(30)");
            throw new AssertionError("not cancelled");
        } catch (SQLException error) {
            check("57014".equals(error.getSQLState()), "cancel gave " + error.getSQLState());
        } finally {
            asks.interrupt();
            asks.join();
        }
        fails("22012", connection, "SELECT 1 / 0");
        check("on we go".equals(ask(connection, "SELECT 'on we go'")), "the session goes on");
        check("t".equals(ask(connection, "SELECT ssl IS NOT NULL FROM pg_stat_ssl WHERE pid = pg_backend_pid()")), "pg_stat_ssl");
    }

    static void writes(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.execute("CREATE TEMP TABLE t (a int PRIMARY KEY, b text)");
        }
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder rows = new StringBuilder();
        for (int i = 0; i < 10000; i++) {
            rows.append(i).append("\tü\n");
        }
        check(copy.copyIn("COPY t FROM STDIN", new StringReader(rows.toString())) == 10000, "COPY in");
        try (PreparedStatement statement = connection.prepareStatement("INSERT INTO t VALUES (?, ?)")) {
            for (int i = 10000; i < 11000; i++) {
                statement.setInt(1, i);
                statement.setString(2, "x");
                statement.addBatch();
            }
            check(statement.executeBatch().length == 1000, "batch");
        }
        check("11000".equals(ask(connection, "SELECT count(*) FROM t")), "rows");
    }

    /** Large objects go through FunctionCall, which nearly nothing else uses any more. */
    static void largeObjects(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        LargeObjectManager manager = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        long id = manager.createLO(LargeObjectManager.READWRITE);
        byte[] data = new byte[1 << 20];
        for (int i = 0; i < data.length; i++) {
            data[i] = (byte) (i * 31);
        }
        LargeObject object = manager.open(id, LargeObjectManager.READWRITE);
        object.write(data);
        object.seek(0);
        check(object.size() == data.length, "size of the large object");
        check(Arrays.equals(object.read(data.length), data), "contents of the large object");
        object.close();
        manager.delete(id);
        connection.commit();
        try {
            manager.open(id, LargeObjectManager.READ);
            throw new AssertionError("a large object that is not there");
        } catch (SQLException error) {
            check("42704".equals(error.getSQLState()), "FunctionCall's error " + error.getSQLState());
        }
        connection.rollback();
        connection.setAutoCommit(true);
    }

    static void messages(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.execute("DO $$ BEGIN RAISE NOTICE 'hear me'; END $$");
            check("hear me".equals(statement.getWarnings().getMessage()), "notice");
            statement.execute("LISTEN pgjdbc");
        }
        try (Connection other = connect(HOST + ":6432"); Statement statement = other.createStatement()) {
            statement.execute("NOTIFY pgjdbc, 'here'");
        }
        PGNotification[] heard = connection.unwrap(PGConnection.class).getNotifications(10000);
        check(heard.length == 1 && "here".equals(heard[0].getParameter()), "notification");
    }

    static void targets() throws Exception {
        String[] orders = {HOST + ":6432," + HOST + ":6433", HOST + ":6433," + HOST + ":6432"};
        String[][] expected = {{"primary", "f"}, {"secondary", "t"}, {"preferSecondary", "t"}, {"preferPrimary", "f"}};
        for (String hosts : orders) {
            for (String[] pair : expected) {
                if (pair[0].equals("preferPrimary") && !supportsPreferPrimary()) {
                    continue;
                }
                try (Connection connection = connect(hosts, "targetServerType", pair[0], "hostRecheckSeconds", "0")) {
                    String is = ask(connection, "SELECT pg_is_in_recovery()");
                    check(pair[1].equals(is), pair[0] + " over " + hosts + " is in recovery: " + is);
                }
            }
        }
        try (Connection connection = connect(HOST + ":6433", "targetServerType", "primary")) {
            throw new AssertionError("a primary on the read-only port");
        } catch (SQLException expectedHere) {
            check("08001".equals(expectedHere.getSQLState()), "no primary: " + expectedHere.getSQLState());
        }
    }

    static boolean supportsPreferPrimary() {
        try {
            org.postgresql.hostchooser.HostRequirement.valueOf("preferPrimary");
            return true;
        } catch (IllegalArgumentException unknown) {
            return false;
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = connect(HOST + ":6432")) {
            reads(connection);
            writes(connection);
            largeObjects(connection);
            messages(connection);
        }
        for (String mode : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
            try (Connection connection = connect(HOST + ":6432", "preferQueryMode", mode)) {
                check("1".equals(ask(connection, "SELECT 1")), mode);
            }
        }
        try (Connection connection = connect(HOST + ":6433")) {
            reads(connection);
            fails("25006", connection, "CREATE TABLE never (a int)");
        }
        targets();
        System.out.println("done");
    }
}
