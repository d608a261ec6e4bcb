from django.urls import path
from orders import views

urlpatterns = [
    path("total/<int:price>/<int:count>", views.show_total),
    path("totals/<int:price>", views.show_totals),
]
