"""kombu and py-amqp over our frames."""
