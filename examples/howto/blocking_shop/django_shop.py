"""A Django project in one file that takes orders."""

import json

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, JsonResponse
from django.urls import path
from shop import place

from events_core import PublishError


def place_order(request: HttpRequest) -> JsonResponse:
    try:
        number = json.loads(request.body)["order"]
        return JsonResponse({"id": place(number)}, status=202)
    except PublishError as error:
        return JsonResponse({"error": error.code.value}, status=503)


urlpatterns = [path("orders", place_order)]

if __name__ == "__main__":
    settings.configure(
        ROOT_URLCONF=__name__,
        SECRET_KEY="only for this page",
        ALLOWED_HOSTS=["localhost"],
    )
    execute_from_command_line()
