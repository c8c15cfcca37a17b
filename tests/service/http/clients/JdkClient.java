import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.Scanner;

/**
 * Posts what it reads, a path and a body of JSON per line with a tab between them, with the JDK's own
 * client as it comes: it offers HTTP/2 on every request. Writes each answer's status and body.
 */
public class JdkClient {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        Scanner lines = new Scanner(System.in, StandardCharsets.UTF_8);
        while (lines.hasNextLine()) {
            String[] parts = lines.nextLine().split("\t", 2);
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + parts[0]))
                .header("Content-Type", "application/json")
                .POST(BodyPublishers.ofString(parts[1]))
                .build();
            HttpResponse<String> answer = client.send(request, BodyHandlers.ofString());
            System.out.println(answer.statusCode() + "\t" + answer.body());
        }
    }
}
