// A server on a reserved port, in Java. Run it with: portkeep run -- java Server.java
// Java cannot set private socket options, so the port comes from `portkeep run`.
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;

public class Server {
    public static void main(String[] arguments) throws IOException {
        int port = Integer.parseInt(System.getenv("PORT"));
        try (var server = new ServerSocket(port, 16, InetAddress.getLoopbackAddress())) {
            System.out.println("listening on port " + server.getLocalPort());
            while (true) {
                try (var connection = server.accept()) {
                    connection.getOutputStream().write("hello\n".getBytes(StandardCharsets.US_ASCII));
                }
            }
        }
    }
}
