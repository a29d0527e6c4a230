// pgjdbc with the console, without autocommit. The tests run it with the driver on the class path and HOST and CA in the
// environment.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.Properties;

public class ConsoleTransactions {
    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    static void fails(Statement statement, String sql, String state) throws SQLException {
        try {
            statement.execute(sql);
        } catch (SQLException error) {
            check(state.equals(error.getSQLState()), error.getMessage());
            return;
        }
        throw new AssertionError("no error: " + sql);
    }

    public static void main(String[] arguments) throws SQLException {
        for (String mode : new String[] {"simple", "extended", "extendedForPrepared"}) {
            Properties properties = new Properties();
            properties.setProperty("user", "admin");
            properties.setProperty("password", "admin");
            properties.setProperty("sslmode", "verify-ca");
            properties.setProperty("sslrootcert", System.getenv("CA"));
            properties.setProperty("connectTimeout", "10");
            properties.setProperty("preferQueryMode", mode);
            String url = "jdbc:postgresql://" + System.getenv("HOST") + ":6432/trunkline";
            try (Connection connection = DriverManager.getConnection(url, properties);
                    Statement statement = connection.createStatement()) {
                check(connection.isValid(5), "it is valid");
                check(connection.getTransactionIsolation() == Connection.TRANSACTION_READ_COMMITTED, "isolation");
                connection.setAutoCommit(false);
                connection.setReadOnly(true);
                statement.setFetchSize(2);
                int rows = 0;
                try (ResultSet events = statement.executeQuery("SELECT number FROM events ORDER BY number")) {
                    while (events.next()) {
                        rows++;
                    }
                }
                check(rows > 0, "the portal goes on behind a Sync");
                Savepoint savepoint = connection.setSavepoint("before");
                fails(statement, "SELECT 1/0", "22012");
                fails(statement, "SELECT 1", "25P02");
                connection.rollback(savepoint);
                check(statement.executeQuery("SELECT 1").next(), "it goes on");
                fails(statement, "RELOAD", "25001");
                connection.rollback();
                for (int i = 0; i < 10; i++) {
                    try (PreparedStatement members =
                            connection.prepareStatement("SELECT member FROM members WHERE port > ?")) {
                        members.setInt(1, 1);
                        check(members.executeQuery().next(), "a member");
                    }
                }
                connection.commit();
                connection.setReadOnly(false);
                connection.setAutoCommit(true);
                statement.execute("RELOAD");
                check(statement.getWarnings().getMessage().contains("nothing has changed"), "the notice");
            }
        }
        System.out.println("done");
    }
}
