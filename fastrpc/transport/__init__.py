"""kombu's transports and py-amqp's connections, with our frame reader and writer."""
