// A statement during which the session is ended: prints the SQLSTATE that the driver shows.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

public class Unknown {
    public static void main(String[] arguments) throws Exception {
        String url = "jdbc:postgresql://" + System.getenv("HOST") + ":6432/app?user=app&password=app"
            + "&sslmode=verify-ca&sslrootcert=" + System.getenv("CA");
        try (Connection connection = DriverManager.getConnection(url)) {
            connection.createStatement().execute("SELECT pg_sleep(600), 'outcome unknown'");
        } catch (SQLException error) {
            System.out.println(error.getSQLState());
        }
    }
}
