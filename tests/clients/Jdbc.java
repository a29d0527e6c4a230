// pgjdbc with HikariCP. Run as harness.py says, with both on the class path.
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.File;
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.Driver;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;

public class Jdbc {
    static final int WRITERS = 4, CONNECTIONS = 4, TASKS = 32, TIMES = 20;
    static final String URL = "jdbc:postgresql://" + System.getenv("HOST") + ":" + System.getenv("PORT")
        + "/app?user=app&password=app&sslmode=verify-full&connectTimeout=20&sslrootcert=" + System.getenv("CA");

    static class Cannot extends Exception {
        Cannot(String why) {
            super(why);
        }
    }

    interface Run {
        void run() throws Exception;
    }

    interface Task {
        void run(int number) throws Exception;
    }

    static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    static String quoted(String text) {
        return '"' + String.valueOf(text).replaceAll("[\"\\\\]", "'").replaceAll("\\s+", " ") + '"';
    }

    static void equal(Object found, Object wanted, String what) {
        if (!wanted.equals(found)) {
            throw new AssertionError(what + ": " + found + " and not " + wanted);
        }
    }

    static Connection connect(String more) throws SQLException {
        return DriverManager.getConnection(URL + more);
    }

    static long value(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(query)) {
            rows.next();
            return rows.getLong(1);
        }
    }

    static void inThreads(int count, Task task) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(count);
        List<Future<?>> all = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            int number = i;
            all.add(threads.submit(() -> {
                task.run(number);
                return null;
            }));
        }
        threads.shutdown();
        for (Future<?> one : all) {
            one.get();
        }
    }

    static void tls(String more) throws Exception {
        try (Connection connection = connect(more)) {
            equal(value(connection, "SELECT 1"), 1L, "the answer");
        }
    }

    /** The property is there from 42.7.5 on; an older driver ignores it. */
    static void binding() throws Exception {
        Driver driver = DriverManager.getDriver(URL);
        boolean known = false;
        for (var property : driver.getPropertyInfo(URL, new java.util.Properties())) {
            known |= property.name.equals("channelBinding");
        }
        if (!known) {
            throw new Cannot("not offered");
        }
        tls("&channelBinding=require");
    }

    /** The first request may come before the statement runs. */
    static void cancel() throws Exception {
        try (Connection connection = connect(""); Statement statement = connection.createStatement()) {
            String[] state = {null};
            Thread thread = new Thread(() -> {
                try {
                    statement.execute("SELECT pg_sleep(30)");
                } catch (SQLException error) {
                    state[0] = error.getSQLState();
                }
            });
            thread.start();
            while (thread.isAlive()) {
                thread.join(200);
                statement.cancel();
            }
            equal(state[0], "57014", "SQLSTATE");
            equal(value(connection, "SELECT 1"), 1L, "the next answer");
        }
    }

    static void copy() throws Exception {
        StringBuilder lines = new StringBuilder();
        for (int number = 0; number < 1000; number++) {
            lines.append(number + "\twords " + number + " é\n");
        }
        try (Connection connection = connect(""); Statement statement = connection.createStatement()) {
            statement.execute("TRUNCATE copied");
            var manager = connection.unwrap(PGConnection.class).getCopyAPI();
            manager.copyIn("COPY copied FROM STDIN", new StringReader(lines.toString()));
            StringWriter out = new StringWriter();
            manager.copyOut("COPY (SELECT * FROM copied ORDER BY id) TO STDOUT", out);
            equal(out.toString(), lines.toString(), "what COPY brings out");
        }
    }

    static void prepared() throws Exception {
        String more = "&prepareThreshold=1";
        try (Connection one = connect(more); Connection two = connect(more);
             PreparedStatement first = one.prepareStatement("SELECT ?::int");
             PreparedStatement second = two.prepareStatement("SELECT ?::int + 1")) {
            for (int number = 0; number < TIMES; number++) {
                for (int add = 0; add < 2; add++) {
                    PreparedStatement statement = add == 0 ? first : second;
                    statement.setInt(1, number);
                    try (ResultSet rows = statement.executeQuery()) {
                        rows.next();
                        equal(rows.getInt(1), number + add, "the answer");
                    }
                }
            }
        }
    }

    static HikariDataSource newPool() {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(URL);
        config.setMaximumPoolSize(CONNECTIONS);
        return new HikariDataSource(config);
    }

    static void pool() throws Exception {
        try (Connection outside = connect(""); HikariDataSource pool = newPool()) {
            long before = value(outside, "SELECT number FROM counted");
            inThreads(TASKS, number -> {
                try (Connection connection = pool.getConnection(); Statement statement = connection.createStatement()) {
                    connection.setAutoCommit(false);
                    statement.execute("UPDATE counted SET number = number + 1");
                    connection.commit();
                }
            });
            equal(value(outside, "SELECT number FROM counted"), before + TASKS, "the counter");
        }
    }

    static void writer(HikariDataSource pool, int writer) throws Exception {
        File stop = new File(System.getenv("STOP"));
        for (int number = 0; !stop.exists(); number++) {
            long begun = System.nanoTime();
            String row = "[" + writer + ", " + number + "]";
            try (Connection connection = pool.getConnection();
                 PreparedStatement statement = connection.prepareStatement("INSERT INTO written VALUES (?, ?)")) {
                statement.setInt(1, writer);
                statement.setInt(2, number);
                statement.execute();
                say("{\"wrote\": " + row + ", \"seconds\": " + (System.nanoTime() - begun) / 1e9 + "}");
            } catch (SQLException error) {
                say("{\"error\": " + quoted(error.getSQLState() + " " + error.getMessage()) + ", \"at\": " + row + "}");
            }
            Thread.sleep(50);
        }
    }

    static void check(String name, Run run) {
        String result = "\"ok\", \"note\": \"\"";
        try {
            run.run();
        } catch (Cannot why) {
            result = "\"cannot\", \"note\": " + quoted(why.getMessage());
        } catch (Throwable error) {
            result = "\"failed\", \"note\": " + quoted(error.toString());
        }
        say("{\"check\": \"" + name + "\", \"result\": " + result + "}");
    }

    public static void main(String[] arguments) throws Exception {
        say("{\"version\": " + quoted(org.postgresql.util.DriverInfo.DRIVER_VERSION) + "}");
        if (arguments[0].equals("writes")) {
            try (HikariDataSource pool = newPool()) {
                inThreads(WRITERS, writer -> writer(pool, writer));
            }
            return;
        }
        check("tls", () -> tls(""));
        check("binding", Jdbc::binding);
        check("cancel", Jdbc::cancel);
        check("copy", Jdbc::copy);
        check("prepared", Jdbc::prepared);
        check("pool", Jdbc::pool);
    }
}
