// `java Call.java URL...` prints the answers' bodies; without a URL, that of each line that it is told.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Arrays;

class Call {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        var told = new BufferedReader(new InputStreamReader(System.in)).lines();
        var urls = (arguments.length > 0 ? Arrays.stream(arguments) : told).iterator();
        while (urls.hasNext()) {
            var request = HttpRequest.newBuilder(URI.create(urls.next())).build();
            System.out.println(client.send(request, BodyHandlers.ofString()).body());
        }
    }
}
