// pgjdbc with the console. The tests run it with the driver on the class path and HOST and CA in the environment.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;

public class Console {
    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
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
                // Often enough for a prepared statement and the binary format.
                for (int i = 0; i < 10; i++) {
                    try (ResultSet rows = connection.prepareStatement("SHOW HBA").executeQuery()) {
                        check(rows.next() && rows.getInt("rule_number") == 1, mode);
                        String[] databases = (String[]) rows.getArray("database").getArray();
                        check(databases.length == 2 && databases[1].equals("replication"), mode);
                        check(rows.getString("file_name") == null, mode);
                    }
                }
                try {
                    statement.executeQuery("LISTEN changes");
                    throw new AssertionError("no error");
                } catch (SQLException error) {
                    check(error.getSQLState().equals("0A000"), error.getMessage());
                }
                check(statement.executeQuery("SHOW VERSION").next(), "the session goes on");
                String query = "SELECT member, port FROM members WHERE port > ? AND member = ? AND status <> 'x'";
                try (PreparedStatement members = connection.prepareStatement(query)) {
                    for (int i = 0; i < 10; i++) {
                        members.setInt(1, 1);
                        members.setString(2, "one");
                        ResultSet rows = members.executeQuery();
                        check(rows.next() && rows.getInt("port") == 5432 && !rows.next(), mode);
                    }
                }
            }
        }
        System.out.println("done");
    }
}
