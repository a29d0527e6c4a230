// pgjdbc as a writer of the recorder; tests/failover/recorder/mod.rs says what all of them do, and how they are told.
import java.io.FileOutputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.sql.Statement;
import java.time.Instant;
import java.util.Properties;
import org.postgresql.PGStatement;
import org.postgresql.util.PSQLException;

public class Writer implements Runnable {
    static final String INSERT = "INSERT INTO recorded (id) VALUES (?)";
    static final long PAUSE = Long.parseLong(System.getenv("PAUSE_MS"));
    static final long END = System.nanoTime() + Long.parseLong(System.getenv("LIMIT_S")) * 1_000_000_000L;
    static final Path STOP = Path.of(System.getenv("STOP"));
    static OutputStream out;

    static long now() {
        Instant now = Instant.now();
        return now.getEpochSecond() * 1_000_000 + now.getNano() / 1000;
    }

    static boolean goesOn() {
        return System.nanoTime() < END && !Files.exists(STOP);
    }

    static void line(Object... fields) {
        StringBuilder text = new StringBuilder();
        for (Object field : fields) {
            text.append(text.length() == 0 ? "" : "\t").append(field);
        }
        synchronized (Writer.class) {
            try {
                out.write(text.append('\n').toString().getBytes(StandardCharsets.UTF_8));
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        }
    }

    static String code(Exception error) {
        return error instanceof SQLException sql && sql.getSQLState() != null ? sql.getSQLState() : "-";
    }

    static String text(Exception error) {
        return (error.getClass().getSimpleName() + ": " + error.getMessage()).replace('\t', ' ').replace('\n', ' ');
    }

    static boolean isFatal(Exception error) {
        return error instanceof PSQLException sql && sql.getServerErrorMessage() != null
            && java.util.Set.of("FATAL", "PANIC").contains(sql.getServerErrorMessage().getSeverity());
    }

    static Connection connect(long writer) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "app");
        properties.setProperty("password", "app");
        properties.setProperty("sslmode", "verify-ca");
        properties.setProperty("sslrootcert", System.getenv("CA"));
        properties.setProperty("connectTimeout", "60");
        properties.setProperty("ApplicationName", "recorder");
        properties.setProperty("prepareThreshold", "1");
        String[] hosts = System.getenv("HOSTS").split(",");
        String at = hosts[(int) (writer % hosts.length)] + ":" + System.getenv("PORT");
        return DriverManager.getConnection("jdbc:postgresql://" + at + "/app", properties);
    }

    final long writer;
    Connection connection;
    PreparedStatement insert;
    String phase;

    Writer(long writer) {
        this.writer = writer;
    }

    void single(long[] ids) throws SQLException {
        phase = "autocommit";
        try (Statement statement = connection.createStatement()) {
            // Otherwise each becomes a prepared statement of its own, until its garbage is collected.
            statement.unwrap(PGStatement.class).setPrepareThreshold(0);
            statement.executeUpdate("INSERT INTO recorded (id) VALUES (" + ids[0] + ")");
        }
    }

    void prepared(long[] ids) throws SQLException {
        phase = "autocommit";
        insert.setLong(1, ids[0]);
        insert.executeUpdate();
    }

    void transaction(long[] ids) throws SQLException, InterruptedException {
        phase = "statement"; // the driver sends BEGIN with it
        connection.setAutoCommit(false);
        for (long id : ids) {
            insert.setLong(1, id);
            insert.executeUpdate();
            Thread.sleep(PAUSE / 4);
        }
        phase = "commit";
        connection.commit();
        connection.setAutoCommit(true);
    }

    void pipelined(long[] ids) throws SQLException {
        // All in one batch, which is one implicit transaction.
        phase = "autocommit";
        for (long id : ids) {
            insert.setLong(1, id);
            insert.addBatch();
        }
        insert.executeBatch();
    }

    boolean isDead(Exception error) {
        try {
            if (isFatal(error)) {
                connection.close();
            } else if (!connection.isClosed() && !connection.getAutoCommit()) {
                connection.rollback();
                connection.setAutoCommit(true);
            }
            insert.clearBatch();
            return connection.isClosed();
        } catch (SQLException second) {
            try {
                connection.close();
            } catch (SQLException third) {
                // It is dead.
            }
            return true;
        }
    }

    static final String[] KINDS = {"single", "transaction", "prepared", "pipelined"};
    static final int[] COUNTS = {1, 2, 1, 3};

    void act(String kind, long[] ids) throws Exception {
        switch (kind) {
            case "single" -> single(ids);
            case "transaction" -> transaction(ids);
            case "prepared" -> prepared(ids);
            default -> pipelined(ids);
        }
    }

    void write() throws Exception {
        long next = writer << 32;
        for (int turn = (int) writer; goesOn(); turn++) {
            long began = now();
            if (connection == null) {
                try {
                    connection = connect(writer);
                    insert = connection.prepareStatement(INSERT);
                    line("login", began, now(), writer, "done", "-", "");
                } catch (SQLException error) {
                    line("login", began, now(), writer, "error", code(error), text(error));
                    Thread.sleep(PAUSE);
                    continue;
                }
            }
            String kind = KINDS[turn % KINDS.length];
            long[] ids = new long[COUNTS[turn % KINDS.length]];
            StringBuilder list = new StringBuilder();
            for (int index = 0; index < ids.length; index++) {
                ids[index] = ++next;
                list.append(index == 0 ? "" : ",").append(next);
            }
            began = now();
            try {
                act(kind, ids);
                line("write", began, now(), writer, "done", kind, list, phase, "-", "");
            } catch (SQLException error) {
                long ended = now();
                boolean isDead = isDead(error);
                String outcome = isDead ? "dead" : "error";
                line("write", began, ended, writer, outcome, kind, list, phase, code(error), text(error));
                connection = isDead ? null : connection;
            }
            Thread.sleep(PAUSE);
        }
        if (connection != null) {
            connection.close();
        }
    }

    @Override
    public void run() {
        try {
            write();
        } catch (Exception error) {
            error.printStackTrace();
            System.exit(1);
        }
    }

    public static void main(String[] arguments) throws Exception {
        out = new FileOutputStream(System.getenv("OUT"));
        for (String number : System.getenv("WRITERS").split(",")) {
            new Thread(new Writer(Long.parseLong(number))).start();
        }
    }
}
