import org.elasticmq.rest.sqs.SQSRestServerBuilder;

/** Serves SQS on a port of 127.0.0.1: java -cp 'target/dependency/*' ElasticMQ.java PORT. */
public class ElasticMQ {
    public static void main(String[] arguments) {
        var builder = SQSRestServerBuilder.withInterface("127.0.0.1").withPort(Integer.parseInt(arguments[0]));
        builder.withAWSRegion("us-east-1").start().waitUntilStarted(); // its threads go on
    }
}
