// pgjdbc with HikariCP, every statement prepared. Run with HOST, PORT, SCHEMA and TASKS and both on the class path; see
// tests/it/pooling/drivers.rs.
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

public class Hikari {
    static final String SCHEMA = System.getenv("SCHEMA");
    static final int TASKS = Integer.parseInt(System.getenv("TASKS"));
    static final int LINES = 20;
    static HikariDataSource pool;

    interface Part {
        void run(Connection connection, int task) throws Exception;
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    static void fails(String state, PreparedStatement statement) throws SQLException {
        try {
            statement.execute();
        } catch (SQLException error) {
            check(state.equals(error.getSQLState()), statement + " gave " + error.getSQLState() + ", not " + state);
            return;
        }
        throw new AssertionError(statement + " did not fail");
    }

    static void own(Connection connection) throws SQLException {
        String ask = "SELECT current_setting('app.schema'), (SELECT name FROM place), current_setting('statement_timeout'), "
            + "current_setting('default_transaction_read_only'), current_setting('default_transaction_isolation')";
        try (PreparedStatement statement = connection.prepareStatement(ask); ResultSet rows = statement.executeQuery()) {
            rows.next();
            String seen = "";
            for (int i = 1; i <= 5; i++) {
                seen += rows.getString(i) + "|";
            }
            check(seen.equals(SCHEMA + "|" + SCHEMA + "|0|off|read committed|"), seen);
        }
    }

    static void add(Connection connection, int amount, int id) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("UPDATE account SET amount = amount + ? WHERE id = ?")) {
            statement.setInt(1, amount);
            statement.setInt(2, id);
            statement.executeUpdate();
        }
    }

    static void transfer(Connection connection, int task) throws Exception {
        int first = Math.min(task % 8, (task + 3) % 8) + 1;
        int second = Math.max(task % 8, (task + 3) % 8) + 1;
        connection.setAutoCommit(false);
        String lock = "SELECT id FROM account WHERE id IN (?, ?) ORDER BY id FOR UPDATE";
        try (PreparedStatement statement = connection.prepareStatement(lock)) {
            statement.setInt(1, first);
            statement.setInt(2, second);
            try (ResultSet rows = statement.executeQuery()) {
                check(rows.next() && rows.getInt(1) == first && rows.next() && rows.getInt(1) == second, "the two accounts");
            }
        }
        add(connection, -1, first);
        Savepoint savepoint = connection.setSavepoint();
        try {
            add(connection, -1000000, first);
            throw new AssertionError("no error");
        } catch (SQLException error) {
            check("23514".equals(error.getSQLState()), error.getSQLState());
            connection.rollback(savepoint);
        }
        add(connection, 1, second);
        connection.commit();
    }

    static void errors(Connection connection, int task) throws Exception {
        connection.setAutoCommit(false);
        try (PreparedStatement line = connection.prepareStatement("INSERT INTO line VALUES (?, ?)");
                PreparedStatement account = connection.prepareStatement("INSERT INTO account VALUES (?, ?)")) {
            line.setInt(1, task);
            line.setString(2, "of a transaction that fails");
            line.executeUpdate();
            account.setInt(1, 1);
            account.setInt(2, 1);
            fails("23505", account);
            fails("25P02", line);
        }
        connection.rollback();
        connection.setAutoCommit(true);
        if (task % 8 == 0) {
            // The driver sends a cancel.
            try (PreparedStatement sleep = connection.prepareStatement("SELECT pg_sleep(?)")) {
                sleep.setInt(1, 30);
                sleep.setQueryTimeout(1);
                fails("57014", sleep);
            }
        }
        // Each of these is a setting of the session, which the pool takes back at the connection's return.
        connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        connection.setReadOnly(true);
        connection.setAutoCommit(false);
        try (PreparedStatement line = connection.prepareStatement("INSERT INTO line VALUES (?, ?)")) {
            line.setInt(1, task);
            line.setString(2, "of a transaction that reads only");
            fails("25006", line);
        }
        connection.rollback();
    }

    static void lines(Connection connection, int task) throws Exception {
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < LINES / 2; i++) {
            text.append(task).append("\tü\n");
        }
        check(copy.copyIn("COPY line FROM STDIN", new StringReader(text.toString())) == LINES / 2, "COPY in");
        try (PreparedStatement statement = connection.prepareStatement("INSERT INTO line VALUES (?, ?)")) {
            for (int i = LINES / 2; i < LINES; i++) {
                statement.setInt(1, task);
                statement.setString(2, "ü");
                statement.addBatch();
            }
            check(statement.executeBatch().length == LINES / 2, "batch");
        }
        StringWriter out = new StringWriter();
        check(copy.copyOut("COPY (SELECT text FROM line WHERE task = " + task + ") TO STDOUT", out) == LINES, "COPY out");
        check(out.toString().equals("ü\n".repeat(LINES)), out.toString());
        connection.setAutoCommit(false);
        try (PreparedStatement statement = connection.prepareStatement("SELECT text FROM line WHERE task = ?")) {
            statement.setFetchSize(7);
            statement.setInt(1, task);
            int count = 0;
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) {
                    count++;
                }
            }
            check(count == LINES, "rows of a portal: " + count);
        }
        connection.commit();
    }

    /** FunctionCall, with results larger than any buffer. */
    static void largeObject(Connection connection, int task) throws Exception {
        if (task % 8 != 0) {
            return;
        }
        connection.setAutoCommit(false);
        LargeObjectManager manager = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        long id = manager.createLO(LargeObjectManager.READWRITE);
        byte[] data = new byte[3 << 20];
        for (int i = 0; i < data.length; i++) {
            data[i] = (byte) (i * 31 + task);
        }
        LargeObject object = manager.open(id, LargeObjectManager.READWRITE);
        object.write(data);
        object.seek(0);
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
    }

    static void work(int task) throws Exception {
        Part[] parts = {Hikari::transfer, Hikari::errors, Hikari::lines, Hikari::largeObject, Hikari::transfer};
        for (Part part : parts) {
            try (Connection connection = pool.getConnection()) {
                own(connection);
                for (int value = 0; value < 5; value++) {
                    try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int * 2, ?::text")) {
                        statement.setInt(1, value);
                        statement.setString(2, "é");
                        try (ResultSet rows = statement.executeQuery()) {
                            check(rows.next() && rows.getInt(1) == value * 2 && rows.getString(2).equals("é"), "prepared");
                        }
                    }
                }
                part.run(connection, task);
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl("jdbc:postgresql://" + System.getenv("HOST") + ":" + System.getenv("PORT") + "/app");
        config.setUsername("app");
        config.setPassword("app");
        config.addDataSourceProperty("sslmode", "disable");
        config.addDataSourceProperty("prepareThreshold", "1");
        config.setConnectionInitSql("SET search_path = " + SCHEMA + "; SET app.schema = '" + SCHEMA + "'");
        config.setMaximumPoolSize(8);
        config.setConnectionTimeout(60000);
        pool = new HikariDataSource(config);
        ExecutorService threads = Executors.newFixedThreadPool(16);
        List<Future<?>> tasks = new ArrayList<>();
        for (int i = 0; i < TASKS; i++) {
            int task = i;
            tasks.add(threads.submit(() -> {
                work(task);
                return null;
            }));
        }
        for (Future<?> task : tasks) {
            task.get();
        }
        threads.shutdown();
        try (Connection connection = pool.getConnection(); Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery("SELECT count(*) FROM line")) {
            check(rows.next() && rows.getInt(1) == TASKS * LINES, "lines");
        }
        pool.close();
        System.out.println("done");
    }
}
