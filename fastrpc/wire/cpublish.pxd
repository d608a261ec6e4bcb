# Mirrors src_c/publish.h, which says what each name means and who owns what.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastrpc.wire.calloc cimport allocator
from fastrpc.wire.cwire cimport wire_view


cdef extern from "publish.h" nogil:
    enum:
        PUBLISH_ACK_SIZE
        PUBLISH_NO_OCTET
        PUBLISH_ENOMEM
        PUBLISH_EEXCHANGE
        PUBLISH_ECONTENT_TYPE
        PUBLISH_ECONTENT_ENCODING
        PUBLISH_EROUTING_KEY
        PUBLISH_ECORRELATION_ID
        PUBLISH_EHEADERS
        PUBLISH_EFRAME_MAX

    ctypedef struct publish_options:
        uint16_t channel
        bint mandatory
        uint32_t frame_max
        wire_view exchange
        wire_view content_type
        wire_view content_encoding
        wire_view headers
        int delivery_mode
        int priority

    ctypedef struct publish_message:
        wire_view routing_key
        wire_view correlation_id
        wire_view body

    ctypedef struct publish_template:
        uint8_t *block

    int publish_template_init(publish_template *t, const publish_options *options,
                              const allocator *alloc) noexcept
    void publish_template_free(publish_template *t) noexcept
    int publish_size(const publish_template *t, const publish_message *m, size_t *size) noexcept
    int publish_write(const publish_template *t, const publish_message *m, uint8_t *out,
                      size_t room) noexcept
    void publish_ack(uint8_t *out, uint16_t channel, uint64_t delivery_tag, bint multiple) noexcept
