import org.elasticmq.rest.sqs.SQSRestServerBuilder;

/** Serves SQS on a port of 127.0.0.1 until standard input ends: java -cp 'target/dependency/*' ElasticMQ.java PORT. */
public class ElasticMQ {
    public static void main(String[] arguments) throws Exception {
        var builder = SQSRestServerBuilder.withInterface("127.0.0.1").withPort(Integer.parseInt(arguments[0]));
        builder.withAWSRegion("us-east-1").start().waitUntilStarted();
        while (System.in.read() != -1) {}
        System.exit(0); // the threads of the server would go on
    }
}
